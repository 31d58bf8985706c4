package cache

import (
	"errors"
	"sync"
	"time"
)

// ErrMissing says that a key is not there.
var ErrMissing = errors.New("cache: missing")

type entry struct {
	value   string
	expires time.Time
}

// Cache is safe for several goroutines.
type Cache struct {
	mu      sync.Mutex
	entries map[string]entry
}

func New() *Cache {
	return &Cache{entries: make(map[string]entry)}
}

func (c *Cache) Get(key string, now time.Time) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, ok := c.entries[key]
	if !ok || now.After(found.expires) {
		delete(c.entries, key)
		return "", ErrMissing
	}
	return found.value, nil
}

func (c *Cache) Keys() []string {
	keys := []string{}
	for key := range c.entries {
		keys = append(keys, key)
	}
	return keys
}
