export interface Shape {
  readonly name: string;
  area(): number;
}

type Size = { width: number; height: number };

export enum Unit {
  Metre = "m",
  Foot = "ft",
}

abstract class Base implements Shape {
  constructor(public readonly name: string, protected unit: Unit = Unit.Metre) {}
  abstract area(): number;
  toString(): string {
    return `${this.name}: ${this.area().toFixed(2)} ${this.unit}²`;
  }
}

export class Rect extends Base {
  constructor(private readonly size: Size) {
    super("rect");
  }
  area(): number {
    const { width, height } = this.size;
    return width * height;
  }
}

export function largest<T extends Shape>(shapes: readonly T[]): T | undefined {
  let best: T | undefined;
  for (const shape of shapes) {
    if (!best || shape.area() > best.area()) best = shape;
  }
  return best;
}
