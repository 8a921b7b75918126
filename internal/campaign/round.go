package campaign

import (
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// campaign is the campaigner: it tries for the posts that are due, until there are no campaigns.
func (o *Office) campaign() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o.mu.Lock()
		if len(o.posts) == 0 || o.ctx.Err() != nil {
			o.trying = false
			o.mu.Unlock()
			return
		}
		now := time.Now()
		posts, next := o.due(now)
		o.mu.Unlock()
		if len(posts) > 0 {
			o.try(posts)
			continue
		}
		var later <-chan time.Time
		if !next.IsZero() {
			timer.Reset(next.Sub(now))
			later = timer.C
		}
		select {
		case <-later:
		case <-o.tries:
		case <-o.stopped:
		}
	}
}

// rest has the client hold back from a name that it has resigned from, whether its campaign goes on or another begins
// at once: else a process whose func fails all the time would lead again before others have heard of it. The caller
// holds the mutex.
func (o *Office) rest(name string) {
	now := time.Now()
	maps.DeleteFunc(o.rested, func(_ string, until time.Time) bool { return !now.Before(until) })
	o.rested[name] = now.Add(holdBack)
}

// due lists the posts to be tried now, and says when there will be others; zero if somebody has to say so first.
// The caller holds the mutex.
func (o *Office) due(now time.Time) (posts []*post, next time.Time) {
	all := !now.Before(o.round)
	if all {
		o.round = now.Add(every - every/10 + rand.N(every/5)) //nolint:gosec // jitter, not a secret
	}
	for _, p := range o.posts {
		if len(p.waiting) == 0 || p.term != nil {
			continue
		}
		if next.IsZero() {
			next = o.round
		}
		switch {
		case now.Before(o.rested[p.name]):
			p.hurry = time.Time{} // others heard it too; a round will come
		case all || (!p.hurry.IsZero() && !now.Before(p.hurry)):
			p.hurry = time.Time{}
			posts = append(posts, p)
		case !p.hurry.IsZero() && p.hurry.Before(next):
			next = p.hurry
		}
	}
	return posts, next
}

// try tries for posts in one round trip, and gives the terms to those who wait.
func (o *Office) try(posts []*post) {
	keys := make([]advisory.Key, len(posts))
	for i, p := range posts {
		keys[i] = p.key
	}
	holds, errs := o.cfg.Desk.TryMany(o.ctx, keys, advisory.Exclusive)
	var terms []*Term
	var unwanted []*lockmgr.Hold
	o.mu.Lock()
	for i, p := range posts {
		p.lastError = errs[i]
		switch {
		case holds[i] == nil:
		case len(p.waiting) == 0: // they ended meanwhile
			unwanted = append(unwanted, holds[i])
		default:
			t := &Term{Hold: holds[i], office: o, post: p, over: make(chan struct{})}
			terms = append(terms, t)
			p.term = t
			p.waiting[0] <- outcome{term: t}
			p.waiting = p.waiting[1:]
		}
	}
	o.mu.Unlock()
	for _, hold := range unwanted {
		hold.GiveBack()
	}
	for _, t := range terms {
		t.Hold.OnEnd(t.finished)
	}
	if len(terms) > 0 {
		chans.Signal(o.rows)
	}
}

const (
	freePrefix   = "leader/free/"   // and the name: its leader has resigned
	resignPrefix = "leader/resign/" // and term/name: it is asked to
)

// heardFree is told that a leader has resigned. It tries soon, but not at the very moment at which all others do.
func (o *Office) heardFree(payload string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.posts[strings.TrimPrefix(payload, freePrefix)]
	if p != nil && len(p.waiting) > 0 && p.term == nil {
		p.hurry = time.Now().Add(rand.N(spread)) //nolint:gosec // jitter, not a secret
		chans.Signal(o.tries)
	}
}
