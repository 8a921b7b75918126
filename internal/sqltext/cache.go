package sqltext

import (
	"encoding/binary"
	"sync"
)

// cacheSize bounds a cache against callers that make up names as they go.
const cacheSize = 1000

// Cache keeps what was built out of names. The zero Cache is ready to use.
type Cache[V any] struct {
	mu      sync.RWMutex
	entries map[string]V // protected by mu
}

// Get returns what is kept under a key of [AppendKey].
func (c *Cache[V]) Get(key []byte) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	value, ok := c.entries[string(key)]
	return value, ok
}

// Put keeps value, in place of some other one if the cache is full.
func (c *Cache[V]) Put(key []byte, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]V{}
	}
	for other := range c.entries {
		if len(c.entries) < cacheSize {
			break
		}
		delete(c.entries, other)
	}
	c.entries[string(key)] = value
}

// Delete forgets what is kept under a key.
func (c *Cache[V]) Delete(key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, string(key))
}

// AppendKey appends names to a key. Each list of names and each name goes with its length, so that different
// lists never make the same key.
func AppendKey(key []byte, names ...string) []byte {
	key = binary.AppendUvarint(key, uint64(len(names)))
	for _, name := range names {
		key = binary.AppendUvarint(key, uint64(len(name)))
		key = append(key, name...)
	}
	return key
}
