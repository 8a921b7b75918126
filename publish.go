package pgbaton

import (
	"os"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/election"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/registry"
	"github.com/pgbaton/pgbaton/internal/semaphore"
)

// newRegistry makes what publishes the names of what the client holds and waits for; nil where there is no connection for it. In the portable schema
// it publishes the client's host and process alone.
func (c *Client) newRegistry() *registry.Registry {
	if c.cfg.MaxConns <= minMaxConns {
		return nil
	}
	walk := c.walk
	if c.dialer.Portable {
		walk = c.walkHeld
	}
	host, _ := os.Hostname() // without one there is the name
	return registry.New(registry.Config{
		Session: c.sidecar, Name: c.cfg.Name, Host: host, Process: os.Getpid(), Pooled: c.pooled != nil,
		Walk: walk, Room: c.room, Report: c.journal.Report,
		Listen: c.listen,
	})
}

// listen has the client hear of operators' requests. Behind a pooler there are no notifications: there it looks, each time.
func (c *Client) listen() {
	c.locks.Listen()
	if a := c.answerer.Load(); a != nil && c.pooled != nil {
		a.Look()
	}
}

// room reports whether there is a connection for the registry. When it is pressing, a session that waits can be asked to leave for it.
func (c *Client) room(pressing bool) bool {
	return c.sidecar.Known() != 0 || c.budget.Spare() || (pressing && !c.budget.Lasting())
}

// newAnswerer makes what gives back what operators ask for; nil where there is no connection for it, or no table.
func (c *Client) newAnswerer() *registry.Answerer {
	if c.registry == nil || c.dialer.Portable {
		return nil
	}
	return registry.NewAnswerer(registry.AnswererConfig{
		Session: c.sidecar, Holders: c.holders, Room: func() bool { return c.room(false) }, Free: c.giveUp, Report: c.journal.Report,
	})
}

// notified takes a notification of the sessions that hold locks; "" when one of them has begun to listen.
func (c *Client) notified(payload string) {
	switch a := c.answerer.Load(); {
	case a == nil:
	case payload == "":
		a.Look() // somebody may have asked before
	default:
		a.Notified(payload)
	}
}

// kinds are those of locks.
var kinds = map[advisory.Use]registry.Kind{advisory.Single: registry.Lock, advisory.InSet: registry.Set, advisory.OfRun: registry.Once}

// walk visits all that the client holds and waits for. Permits that are held are rows already, but for since when.
func (c *Client) walk(visit func(registry.Entry)) {
	c.locks.Walk(func(s lockmgr.Standing) {
		visit(registry.Entry{
			Grant: s.Hold, Waits: s.Waits, Kind: kinds[s.Key.Use], Name: s.Key.Name, Key: s.Key.Key, Shared: s.Mode == advisory.Shared,
			Permits: 1, Token: s.Token, Client: s.Client, Listed: !s.Waits && c.sessions == nil && s.Key.Use == advisory.Single, // by its lease
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
		visit(registry.Entry{Grant: of, Waits: true, Kind: registry.Set, Name: k.Name, Key: k.Key, Permits: 1, Client: id})
		return true
	})
	holder := c.sidecar.Known()
	c.semaphores.Walk(func(s semaphore.Standing) {
		e := registry.Entry{
			Grant: s.Of, Waits: s.Waits, Kind: registry.Permit, Name: c.private(s.Name), Permits: s.Permits, Token: s.Token, Client: s.Holder,
		}
		if s.Waits {
			e.Client = holder
		}
		visit(e)
	})
}

// walkHeld is walk for the portable schema: what is held has a row of its own there, and what waits has none.
func (c *Client) walkHeld(visit func(registry.Entry)) {
	c.walk(func(e registry.Entry) {
		if !e.Waits {
			e.Listed = true
			visit(e)
		}
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

// namedFor is named, with what for.
func (c *Client) namedFor(key Key, use advisory.Use) advisory.Named {
	n := c.named(key)
	n.Use = use
	return n
}

// label is a key as others may see it in errors about a deadlock.
func (c *Client) label(key Key) string {
	if c.cfg.Private && key.kind == keyName {
		return ID(key.key.ID).String()
	}
	return key.String()
}
