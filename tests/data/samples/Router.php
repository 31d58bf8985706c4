<?php

namespace App;

use InvalidArgumentException;

final class Router
{
    private array $routes = [];

    public function add(string $method, string $path, callable $handler): self
    {
        if ($path === '' || $path[0] !== '/') {
            throw new InvalidArgumentException("not a path: $path");
        }
        $this->routes[strtoupper($method)][$path] = $handler;
        return $this;
    }

    public function match(string $method, string $path): ?callable
    {
        foreach ($this->routes[$method] ?? [] as $route => $handler) {
            if (preg_match('#^' . $route . '$#', $path)) {
                return $handler;
            }
        }
        return null;
    }
}
