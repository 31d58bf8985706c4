"""A small stock list, with a hole where stopgap shows what it does."""

from dataclasses import dataclass


@dataclass
class Item:
    name: str
    price: float
    quantity: int


class Inventory:
    def __init__(self, items=None):
        self.items = list(items or [])

    def add(self, name, price, quantity=1):
        self.items.append(Item(name, price, quantity))

    def remove(self, name):
        self.items = [item for item in self.items if item.name != name]

    def find(self, name):
        for item in self.items:
            if item.name == name:
                # fill here
        return None

    def total(self):
        return sum(item.price * item.quantity for item in self.items)
