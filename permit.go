package pgbaton

import (
	"context"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
	"github.com/pgbaton/pgbaton/internal/semaphore"
)

// Permit is one or more permits of a semaphore that are held together. It is made by [Semaphore.Acquire] and its
// relatives, and ended by Release, by [Client.Close], or by loss. It is safe for concurrent use.
type Permit struct {
	semaphore *Semaphore
	permit    *semaphore.Permit
	n         int
	parent    context.Context //nolint:containedctx // the values of the permit's own context

	context grantContext
}

// none reports whether the permit was never acquired.
func (p *Permit) none() bool { return p == nil || p.permit == nil }

// what names the permit in errors.
func (p *Permit) what() string {
	if p.none() {
		return "permit"
	}
	return permitsOf(p.n, p.semaphore)
}

// Token is the grant's fencing token; see [Token]. It is greater than that of every earlier holder of any of the
// slots; holders of other slots may have greater or smaller ones. So it cannot fence a resource that several
// holders write to at the same time: use [Permit.Assert] there.
func (p *Permit) Token() Token {
	if p.none() {
		return 0
	}
	return Token(p.permit.Token())
}

// Done is closed when the permit is over: released, lost, or no longer to be trusted. On a silent network or after
// a pause of the process that is before the server can give it to anybody else, once the process runs.
// When the connection is ended by the server it is a moment after.
func (p *Permit) Done() <-chan struct{} {
	if p.none() {
		return never
	}
	return p.permit.Done()
}

// Context is a context that ends when the permit is over, with [Permit.Err] as its cause. It has the values of the
// acquire's context, but not its end. Every call returns the same.
func (p *Permit) Context() context.Context {
	if p.none() {
		return noContext()
	}
	return p.context.of(p.parent, p.permit)
}

// Err is nil while the permit is held and can be trusted. Afterwards it matches [ErrNotHeld] if it was released, or
// [ErrLost] and says why. It asks no server.
func (p *Permit) Err() error {
	if err := p.trouble(); err != nil {
		return wrap(err, "%s", p.what())
	}
	return nil
}

// trouble is Err without the permit's name.
func (p *Permit) trouble() error {
	if p.none() {
		return errNoGrant
	}
	return p.permit.Err()
}

// Release ends the permit. Nil means that it was held without a break until this call. An error that matches
// [ErrLost] means that it was not, or that it is not known; there is nothing left to release.
//
// It is safe to call twice, in defer, and after ctx has ended: a release is never cut short, and ctx is not used. It
// returns within TTL on a dead network. A second call returns what the first did.
func (p *Permit) Release(ctx context.Context) error {
	if p.none() {
		return wrap(errNoGrant, "release permit")
	}
	if err := p.permit.Release(); err != nil {
		return wrap(err, "release %s", p.what())
	}
	return nil
}

// The slots are sent as text, which every driver can.
const sqlHoldsSlots = `SELECT pgbaton.holds_slots($1, $2, $3::text::integer[], $4)`

// Assert makes the caller's transaction safe from the holder's own delays: call it before the transaction's
// first write. tx is a pgx.Tx, or a *sql.Tx by [SQLTx], in the semaphore's database.
//
// On success the permit is held by the database's clock, and nobody else is given its slots before tx has ended,
// even if they expire: so at most as many transactions as the semaphore has permits are under way at any time.
// On failure roll back. The error matches [ErrLost] or [ErrNotHeld] if the permit is known to be over (nothing was
// sent), or [ErrStaleToken] if it has expired, or others have the slots by now.
func (p *Permit) Assert(ctx context.Context, tx Tx) error {
	if err := p.assert(ctx, tx); err != nil {
		return wrap(err, "assert %s", p.what())
	}
	return nil
}

func (p *Permit) assert(ctx context.Context, tx Tx) error {
	if p.none() {
		return errNoGrant
	}
	p.permit.Asserted() // before the look: a release that is not seen yet sees this, and hands nothing over
	if err := p.permit.Err(); err != nil {
		return err
	}
	semaphore, holder, slots, base := p.permit.Claim()
	var held bool
	_, err := rowstmt.QueryRow(ctx, tx, []any{&held}, sqlHoldsSlots, semaphore, holder, string(pgtext.Ints(slots)), base)
	if err == nil && !held {
		err = fmt.Errorf("%w: it has expired", ErrStaleToken)
	}
	if err != nil {
		return pgerr.Schema(translate(err))
	}
	return nil
}

// limited applies Config.MaxHold to a permit, if it was acquired.
func (p *Permit) limited(err error) (*Permit, error) {
	if err != nil {
		return nil, err
	}
	if most := p.semaphore.client.cfg.MaxHold; most > 0 {
		limit(p.permit, most)
	}
	return p, nil
}
