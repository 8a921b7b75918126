package pgbaton

import (
	"os"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/election"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/registry"
	"github.com/pgbaton/pgbaton/internal/semaphore"
)

// newRegistry makes what publishes the names of what the client holds and waits for; nil where there is no connection for it, or no table.
func (c *Client) newRegistry() *registry.Registry {
	if c.cfg.MaxConns <= minMaxConns || c.dialer.Portable {
		return nil
	}
	host, _ := os.Hostname() // without one there is the name
	return registry.New(registry.Config{
		Session: c.sidecar, Name: c.cfg.Name, Host: host, Process: os.Getpid(), Pooled: c.pooled != nil,
		Walk: c.walk, Room: func() bool { return c.sidecar.Known() != 0 || c.budget.Spare() }, Report: c.journal.Report,
		Listen: c.locks.Listen,
	})
}

// newAnswerer makes what gives back what operators ask for; nil where there is no connection for it, or no table.
func (c *Client) newAnswerer() *registry.Answerer {
	if c.registry == nil {
		return nil
	}
	return registry.NewAnswerer(registry.AnswererConfig{
		Session: c.sidecar, Holders: c.holders, Free: c.giveUp, Report: c.journal.Report,
	})
}

// notified takes a notification of the sessions that hold locks.
func (c *Client) notified(payload string) {
	if a := c.answerer.Load(); a != nil {
		a.Notified(payload)
	}
}

// walk visits all that the client holds and waits for. Permits that are held are rows already.
func (c *Client) walk(visit func(registry.Entry)) {
	c.locks.Walk(func(s lockmgr.Standing) {
		visit(registry.Entry{
			Grant: s.Hold, Waits: s.Waits, Kind: registry.Lock, Name: s.Key.Name, Key: s.Key.Key, Shared: s.Mode == advisory.Shared,
			Permits: 1, Token: s.Token, Client: s.Client, Listed: !s.Waits && c.sessions == nil, // by its lease
		})
	})
	id := c.locks.Client()
	c.elections.Walk(func(w election.Candidacy) {
		visit(registry.Entry{
			Grant: w.Candidate, Waits: true, Kind: registry.Lock, Name: w.Key.Name, Key: w.Key.Key, Permits: 1, Client: id,
		})
	})
	c.gatherings.Range(func(of, key any) bool {
		k := key.(advisory.Named) //nolint:forcetypeassert // there is nothing else in it
		visit(registry.Entry{Grant: of, Waits: true, Kind: registry.Lock, Name: k.Name, Key: k.Key, Permits: 1, Client: id})
		return true
	})
	holder := c.sidecar.Known()
	c.semaphores.Walk(func(w semaphore.Waiting) {
		visit(registry.Entry{
			Grant: w.Waiter, Waits: true, Kind: registry.Permit, Name: c.private(w.Name), Permits: w.Permits, Client: holder,
		})
	})
}

// private is a name as others may see it.
func (c *Client) private(name string) string {
	if c.cfg.Private {
		return ""
	}
	return name
}

// named is a key for the lock manager, with its name unless that is private.
func (c *Client) named(key Key) advisory.Named {
	return advisory.Named{Key: key.key, Name: c.private(key.name)}
}

// label is a key as others may see it in errors about a deadlock.
func (c *Client) label(key Key) string {
	if c.cfg.Private && key.kind == keyName {
		return ID(key.key.ID).String()
	}
	return key.String()
}
