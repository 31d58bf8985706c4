import { clock } from "./clock.js";

const LIMIT = 16;

/** Keeps the newest `LIMIT` jobs. */
export class Queue {
  constructor(limit = LIMIT) {
    this.limit = limit;
    this.jobs = [];
  }

  push(job, { first = false } = {}) {
    const entry = { job, at: clock(), label: `job ${this.jobs.length + 1}` };
    if (first) {
      this.jobs.unshift(entry);
    } else {
      this.jobs.push(entry);
    }
    while (this.jobs.length > this.limit) this.jobs.shift();
    return entry.label.replace(/\s+/g, "-");
  }

  *[Symbol.iterator]() {
    for (const { job } of this.jobs) yield job;
  }
}

export const total = (queue) => [...queue].reduce((sum, job) => sum + (job.cost ?? 1), 0);
