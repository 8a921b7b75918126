package leaseengine

import (
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// round writes operations as statements, one a kind, and takes their rows.
type round struct {
	link *link

	acquires []*engine.Request // and draws and yields, by their places; nil for a turn that is given up
	releases []*engine.Request
	granted  []engine.Tokens // of acquires
	ok       []bool
	freed    []bool // of releases

	renews  []advisory.Key // by their places
	leases  []*lease
	renewed []bool
	missed  []bool // a row that another transaction has: its lease goes on, but is not renewed
	only    bool
	former  []int64
	joins   bool
}

var _ pipeline.Round[op] = (*round)(nil)

// ignored takes rows that nobody wants; joinSink those of join_engine.
type (
	ignored  struct{}
	joinSink struct{ ignored }
)

// Row implements [pipeline.Sink].
func (ignored) Row([][]byte) error { return nil }

// Encode implements [pipeline.Round].
func (r *round) Encode(w *pipeline.Writer, ops []op) {
	l := r.link
	*r = round{link: l}
	var renewal *renewal
	leaves := false
	var a asking
	for _, o := range ops {
		switch {
		case o.renewal != nil:
			if renewal == nil || o.renewal.only {
				renewal = o.renewal
			}
		case o.leave != nil:
			leaves = true
		case o.strays != nil:
			r.encodeStrays(w, o.strays)
		case o.forfeit != nil:
			r.acquires = append(r.acquires, nil)
			a.add(advisory.Named{Key: o.forfeit.key}, false, wantNone, 1, -1)
		case o.request.Verb == engine.Release:
			r.releases = append(r.releases, o.request)
		default:
			r.acquires = append(r.acquires, o.request)
			a.request(l, o.request)
		}
	}
	r.ok, r.granted = make([]bool, len(r.acquires)), make([]engine.Tokens, len(r.acquires))
	r.freed = make([]bool, len(r.releases))
	if !l.counts() && (renewal != nil || len(r.acquires) > 0) {
		r.joins = true
		r.join(w)
	}
	if renewal != nil {
		r.encodeRenewal(w, renewal)
	}
	r.encodeLocks(w, a)
	r.encodeReleases(w)
	r.encodeAcquires(w, a)
	if leaves {
		for _, holder := range l.holders() {
			w.SendText(&stmtLeave, ignored{}, [][]byte{pgtext.Int(holder)})
		}
	}
}

func (r *round) join(w *pipeline.Writer) {
	cfg := &r.link.engine.cfg
	wanted, length := "lease", []byte(nil)
	if cfg.Both {
		wanted = "both"
	}
	if cfg.Pooled {
		length = pgtext.Int(cfg.TTL.Milliseconds())
	}
	w.SendText(&stmtJoin, joinSink{}, [][]byte{pgtext.Int(r.link.holder), []byte(wanted), []byte(cfg.Name), length})
}

// asking are the arguments of acquire_leases.
type asking struct {
	keys                  []int64
	pairs, shared         []bool
	wants, tokens, waited []int32
	names                 []string
}

func (a *asking) add(key advisory.Named, shared bool, want, tokens, waited int32) {
	a.keys, a.pairs, a.shared = append(a.keys, key.ID), append(a.pairs, key.Pair), append(a.shared, shared)
	a.wants, a.tokens, a.waited = append(a.wants, want), append(a.tokens, tokens), append(a.waited, waited)
	a.names = append(a.names, key.Name)
}

// request adds an Acquire, a Draw or a Yield.
func (a *asking) request(l *link, request *engine.Request) {
	e := l.engine
	want, waited := int32(wantTurn), int32(-1)
	switch request.Verb {
	case engine.Draw:
		want = wantTokens
	case engine.Yield:
		want = wantNews
	case engine.Acquire:
		if request.Manners == engine.Barge {
			want = wantFirst
		}
		e.mu.Lock()
		if p := e.queued[request.Key]; p != nil {
			p.marked = true
			waited = int32(min(time.Since(p.since).Milliseconds(), int64(time.Hour/time.Millisecond))) //nolint:gosec // an hour at the most
		}
		e.mu.Unlock()
	case engine.Release: // is not asked for
	}
	a.add(advisory.Named{Key: request.Key, Name: l.tellable(request.Name)}, request.Mode == advisory.Shared, want, int32(max(request.Want, 1)), waited) //nolint:gosec // at most 64
}

// encodeLocks has the rows of all keys locked in one order, if some are given back and some taken. A request that waits is left out: it
// does not wait for a row.
func (r *round) encodeLocks(w *pipeline.Writer, a asking) {
	if len(r.releases) == 0 {
		return
	}
	var keys []int64
	var pairs []bool
	for i, waited := range a.waited {
		if waited < 0 {
			keys, pairs = append(keys, a.keys[i]), append(pairs, a.pairs[i])
		}
	}
	if len(keys) == 0 {
		return
	}
	for _, request := range r.releases {
		keys, pairs = append(keys, request.Key.ID), append(pairs, request.Key.Pair)
	}
	w.SendText(&stmtLock, ignored{}, [][]byte{pgtext.Ints(keys), pgtext.Bools(pairs)})
}

func (r *round) encodeAcquires(w *pipeline.Writer, a asking) {
	cfg := &r.link.engine.cfg
	holder, length := pgtext.Int(r.link.holder), pgtext.Int(cfg.TTL.Milliseconds())
	switch {
	case len(a.keys) == 0:
	case len(a.keys) == 1 && !a.shared[0] && a.wants[0] <= wantTurn && a.waited[0] < 0 && !cfg.Both:
		w.SendText(&stmtAcquire, (*loneSink)(r), [][]byte{
			holder, length, pgtext.Int(a.keys[0]), pgtext.Bool(a.pairs[0]), pgtext.Int(int64(a.wants[0])), pgtext.Int(int64(a.tokens[0])),
			[]byte(a.names[0]),
		})
	default:
		w.SendText(&stmtAcquireMany, (*grantSink)(r), [][]byte{
			holder, length, pgtext.Ints(a.keys), pgtext.Bools(a.pairs), pgtext.Bools(a.shared), pgtext.Ints(a.wants),
			pgtext.Ints(a.tokens), pgtext.Ints(a.waited), pgtext.Bool(cfg.Both), pgtext.Texts(a.names),
		})
	}
}

func (r *round) encodeReleases(w *pipeline.Writer) {
	if len(r.releases) == 0 {
		return
	}
	e, a := r.link.engine, r.link.anchor
	var keys, tokens []int64
	var pairs, shared []bool
	e.mu.Lock()
	for _, request := range r.releases {
		token := int64(0) // of a lease that is not known any longer, which is nobody's
		if l := a.leases[request.Key]; l != nil {
			l.releasing = true
			token = l.token
		}
		keys, tokens = append(keys, request.Key.ID), append(tokens, token)
		pairs, shared = append(pairs, request.Key.Pair), append(shared, request.Mode == advisory.Shared)
	}
	e.mu.Unlock()
	holder := pgtext.Int(r.link.holder)
	if len(keys) == 1 && !shared[0] && !e.cfg.Both {
		w.SendText(&stmtRelease, (*freedSink)(r), [][]byte{holder, pgtext.Int(keys[0]), pgtext.Bool(pairs[0]), pgtext.Int(tokens[0])})
		return
	}
	w.SendText(&stmtReleaseMany, (*freedManySink)(r), [][]byte{
		holder, pgtext.Ints(keys), pgtext.Bools(pairs), pgtext.Bools(shared), pgtext.Ints(tokens), pgtext.Bool(e.cfg.Both),
	})
}

// encodeRenewal has all leases renewed that are not being given back.
func (r *round) encodeRenewal(w *pipeline.Writer, renewal *renewal) {
	e, a := r.link.engine, r.link.anchor
	var keys, tokens []int64
	var pairs, shared []bool
	e.mu.Lock()
	for key, l := range a.leases {
		if l.releasing && !renewal.only {
			continue
		}
		r.renews, r.leases = append(r.renews, key), append(r.leases, l)
		keys, pairs = append(keys, key.ID), append(pairs, key.Pair)
		shared, tokens = append(shared, l.mode == advisory.Shared), append(tokens, l.token)
	}
	r.former = append(append(r.former, a.former...), e.orphans...)
	e.mu.Unlock()
	r.only = renewal.only
	r.renewed, r.missed = make([]bool, len(keys)), make([]bool, len(keys))
	w.SendText(&stmtRenew, (*renewedSink)(r), [][]byte{
		pgtext.Int(r.link.holder), pgtext.Int(e.cfg.TTL.Milliseconds()), pgtext.Ints(keys), pgtext.Bools(pairs), pgtext.Bools(shared),
		pgtext.Ints(tokens), pgtext.Ints(r.former), pgtext.Bool(r.only),
	})
}

// Check implements [pipeline.Round]: each sink has checked its rows.
func (r *round) Check() error { return nil }

// Refuse implements [pipeline.Round].
func (r *round) Refuse(ops []op, sink pipeline.Sink, err *pgconn.PgError) {
	r.refuse(ops, sink, refusal(err))
}

// The sinks take places in the arrays that were sent, counted from 1.
type (
	loneSink      round
	grantSink     round
	freedSink     round
	freedManySink round
	renewedSink   round
)

// Row implements [pipeline.Sink]: a token, or NULL.
func (r *loneSink) Row(values [][]byte) error {
	if len(values) != 1 {
		return pipeline.ErrProtocol
	}
	if values[0] == nil {
		return nil
	}
	token, err := strconv.ParseInt(string(values[0]), 10, 64)
	if err != nil {
		return pipeline.ErrProtocol
	}
	r.ok[0], r.granted[0] = true, engine.TokensFrom(token, max(r.acquires[0].Want, 1))
	return nil
}

// Row implements [pipeline.Sink]: a request that was granted, with its tokens.
func (r *grantSink) Row(values [][]byte) error {
	if len(values) != 3 {
		return pipeline.ErrProtocol
	}
	var numbers [3]int64
	for i, value := range values {
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			return pipeline.ErrProtocol
		}
		numbers[i] = n
	}
	at := numbers[0] - 1
	if at < 0 || at >= int64(len(r.ok)) {
		return pipeline.ErrProtocol
	}
	r.ok[at], r.granted[at] = true, engine.TokensFrom(numbers[1], int(numbers[2]))
	return nil
}

// Row implements [pipeline.Sink]: whether the lease was ours.
func (r *freedSink) Row(values [][]byte) error {
	if len(values) != 1 {
		return pipeline.ErrProtocol
	}
	r.freed[0] = string(values[0]) == "t"
	return nil
}

// Row implements [pipeline.Sink].
func (r *freedManySink) Row(values [][]byte) error { return mark(r.freed, values) }

// Row implements [pipeline.Sink]. A place below zero is that of a lease which could not be renewed.
func (r *renewedSink) Row(values [][]byte) error {
	if len(values) == 1 && len(values[0]) > 0 && values[0][0] == '-' {
		return mark(r.missed, [][]byte{values[0][1:]})
	}
	return mark(r.renewed, values)
}

func mark(marks []bool, values [][]byte) error {
	if len(values) != 1 {
		return pipeline.ErrProtocol
	}
	at, err := strconv.Atoi(string(values[0]))
	if err != nil || at < 1 || at > len(marks) {
		return pipeline.ErrProtocol
	}
	marks[at-1] = true
	return nil
}
