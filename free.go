package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/registry"
)

// FreeOpts are the settings of [Client.Free].
type FreeOpts struct {
	// Reason is why, for the holder, its log and the record.
	Reason string

	// DryRun frees nothing: the call returns what it would free.
	DryRun bool

	// EndSession ends the session of a holder that does not answer, as a frozen one, with all that is held by it. What a holder without a session
	// has, behind a pooler, is no longer renewed, and lapses within its TTL.
	EndSession bool
}

const (
	// answerWithin is how long a holder has to give back what it is asked for.
	answerWithin = 2 * time.Second
	// answerLook is how often the request is looked at meanwhile.
	answerLook = 50 * time.Millisecond
)

// Free takes a lock, a term or a permit from its holder, in whichever process that is, and nothing else: held is from [Client.Locks]. The holder is asked, gives it
// back, and is told that it is lost, as "freed by an operator" by [LossReasonOf]; then others have their turn. The error is nil only if the holder has
// answered that, within 2 s, or its session was ended or, where it has none, its lease or permit is no longer renewed.
//
// It returns what was freed, held first: with a session that was ended all that died with it, and with [FreeOpts.DryRun] what would be
// freed, which with EndSession is the worst case. [ErrNotFound] says that the holder no longer has it. An error that matches context.DeadlineExceeded says that
// it has not answered, and what else its session holds; the request is withdrawn then. What another program holds cannot be freed: end its session.
//
// A LockInfo without a token, as of a lock that is held for less than two seconds, means what the client has of the key when it is asked, and of several shared locks
// one of them (as leases they are one row, and are freed together); a permit cannot be meant without one. A client of which all connections hold locks, or that has two at the most ([Config.MaxConns]), has none to look by, and does not answer.
//
// Only operators may, see docs/operations.md. Each freeing leaves a row in the table pgbaton.freeing, and a line in the logs of both sides. The portable schema
// has no such requests.
func (c *Client) Free(ctx context.Context, held LockInfo, opts *FreeOpts) ([]LockInfo, error) {
	freed, err := c.free(ctx, held, opts)
	if err != nil {
		return nil, wrap(err, "free %s", held.what())
	}
	return freed, nil
}

func (c *Client) free(ctx context.Context, held LockInfo, opts *FreeOpts) ([]LockInfo, error) {
	var o FreeOpts
	if opts != nil {
		o = *opts
	}
	if c.made() == nil && c.dialer.Portable {
		return nil, fmt.Errorf("%w: the portable schema has no requests to holders", ErrUnsupportedServer)
	}
	if held.State != "held" || held.Holder == 0 {
		return nil, fmt.Errorf("it is not held by a client of pgbaton, or by one of another service, whose locks only operators may free; "+
			"end the session of another program: SELECT pg_terminate_backend(%d)", held.Session)
	}
	if held.Kind == string(registry.Permit) && held.Token == 0 {
		return nil, errors.New("its token is not known yet, by which one permit is told from another: list again in two seconds")
	}
	all, err := c.Locks(ctx, nil)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	found, others := split(all, held)
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: the holder no longer has it", ErrNotFound)
	case o.DryRun && o.EndSession:
		return append(found, others...), nil
	case o.DryRun:
		return found, nil
	}
	return c.ask(ctx, found, others, o)
}

// split divides what the holder of something has into that and what goes with its session.
func split(all []LockInfo, held LockInfo) (found, others []LockInfo) {
	for _, l := range all {
		l.BlockedBy = nil
		switch {
		case l.State != "held" || l.Holder != held.Holder:
		case len(found) == 0 && l.object() == held.object() && (held.Token == 0 || l.Token == held.Token):
			found = append(found, l)
		default:
			others = append(others, l)
		}
	}
	if len(found) > 0 && found[0].Session == 0 { // there is no session to be ended, and each lapses by itself, but for permits of one claim
		others = slices.DeleteFunc(others, func(l LockInfo) bool { return l.Kind != string(registry.Permit) || l.object() != found[0].object() })
	}
	return found, others
}

// ask asks the holder, and waits for its answer.
func (c *Client) ask(ctx context.Context, found, others []LockInfo, o FreeOpts) ([]LockInfo, error) {
	request := found[0].request()
	id, err := registry.RequestFree(ctx, c.sidecar, request, found[0].Client, o.Reason)
	if err != nil {
		return nil, pgerr.Schema(translate(err))
	}
	end := time.NewTimer(answerWithin)
	defer end.Stop()
	look := time.NewTicker(answerLook)
	defer look.Stop()
	for late := false; ; {
		outcome, err := registry.SettleFree(ctx, c.sidecar, id, late, late && o.EndSession)
		if err != nil {
			c.withdraw(ctx, id)
			return nil, fmt.Errorf("the holder may have been asked: %w", pgerr.Schema(translate(err)))
		}
		if outcome != "" {
			return c.settled(outcome, found, others)
		}
		select {
		case <-ctx.Done():
			c.withdraw(ctx, id)
			return nil, fmt.Errorf("the holder may have been asked: %w", ctx.Err())
		case <-end.C:
			if late {
				return nil, fmt.Errorf("%w: the holder's answer is under way, or somebody has locked the row of the request", context.DeadlineExceeded)
			}
			late = true
			end.Reset(answerWithin)
			if o.EndSession {
				c.journal.Log(slog.LevelWarn, "a holder does not answer an operator, and its session is ended", also(errors.New(found[0].what()), rest(others)))
			}
		case <-look.C:
		}
	}
}

// withdraw ends a request for which nobody waits any longer. If it cannot, the request is too old after some seconds.
func (c *Client) withdraw(ctx context.Context, id int64) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	_, _ = registry.SettleFree(bounded, c.sidecar, id, true, false)
}

// settled is the result of a request with an outcome.
func (c *Client) settled(outcome string, found, others []LockInfo) ([]LockInfo, error) {
	switch outcome {
	case registry.Freed, registry.Lapses:
	case registry.SessionEnded:
		found = append(found, others...)
	case registry.Gone:
		return nil, fmt.Errorf("%w: the holder no longer has it", ErrNotFound)
	default:
		err := fmt.Errorf("%w: the holder has not answered within %v; FreeOpts.EndSession ends its session", context.DeadlineExceeded, answerWithin)
		return nil, also(err, rest(others))
	}
	c.journal.Log(slog.LevelWarn, "freed as an operator: "+outcome, errors.New(found[0].what()))
	return found, nil
}

// rest says what else a session holds; nil if nothing.
func rest(others []LockInfo) error {
	if len(others) == 0 {
		return nil
	}
	const most = 20
	names := make([]string, 0, most)
	for _, l := range others[:min(len(others), most)] {
		names = append(names, l.what())
	}
	return fmt.Errorf("with it goes what else the session holds, %d: %s", len(others), strings.Join(names, ", "))
}

// request is what to ask of the holder.
func (l *LockInfo) request() registry.Request {
	r := registry.Request{Holder: l.Holder, Kind: registry.Lock, Name: l.Name, Key: l.Key.key, Token: int64(l.Token)}
	if l.Kind == string(registry.Permit) {
		r.Kind = registry.Permit
	}
	return r
}

// what names it in errors.
func (l *LockInfo) what() string {
	if l.Kind == string(registry.Permit) {
		return fmt.Sprintf("permit of %q", l.Name)
	}
	return l.Key.what()
}
