package bank;

import java.util.ArrayList;
import java.util.List;

/** Money in cents. */
public final class Account {
    private final String owner;
    private final List<Long> changes = new ArrayList<>();

    public Account(String owner) {
        this.owner = owner;
    }

    public synchronized void deposit(long cents) {
        if (cents <= 0) {
            throw new IllegalArgumentException("not a deposit: " + cents);
        }
        changes.add(cents);
    }

    public long balance() {
        long sum = 0;
        for (long change : changes) {
            sum += change;
        }
        return sum;
    }

    @Override
    public String toString() {
        return changes.isEmpty() ? owner : String.format("%s: %d.%02d", owner, balance() / 100, balance() % 100);
    }
}
