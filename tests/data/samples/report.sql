CREATE TABLE orders (
  id INT PRIMARY KEY,
  customer TEXT NOT NULL,
  total NUMERIC
);

INSERT INTO orders (id, customer, total) VALUES (1, 'Ada', 20), (2, 'Bo', 5);

SELECT customer, SUM(total) AS spent
FROM orders
WHERE total > 3
GROUP BY customer
ORDER BY spent DESC;

UPDATE orders SET total = total + 1 WHERE customer = 'Bo';
