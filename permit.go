package pgbaton

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/pgerr"
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

// N is how many permits are held together.
func (p *Permit) N() int { return p.n }

// Semaphore is whose permits they are.
func (p *Permit) Semaphore() *Semaphore { return p.semaphore }

// Token is the grant's fencing token; see [Token]. It is greater than that of every earlier holder of any of the
// slots; holders of other slots may have greater or smaller ones. So it cannot fence a resource that several
// holders write to at the same time: use [AssertPermit] there.
func (p *Permit) Token() Token { return Token(p.permit.Token()) }

// Done is closed when the permit is over: released, lost, or no longer to be trusted. On a silent network or after
// a pause of the process that is before the server can give it to anybody else, once the process runs.
// When the connection is ended by the server it is a moment after.
func (p *Permit) Done() <-chan struct{} { return p.permit.Done() }

// Jeopardy is closed while more than half of the time has passed after which the permit will not be trusted any
// more; see [Lock.Jeopardy].
func (p *Permit) Jeopardy() <-chan struct{} { return p.permit.Jeopardy() }

// Context is a context that ends when the permit is over, with [Permit.Err] as its cause. It has the values of the
// acquire's context, but not its end. Every call returns the same.
func (p *Permit) Context() context.Context { return p.context.of(p.parent, p.permit) }

// Err is nil while the permit is held and can be trusted. Afterwards it matches [ErrNotHeld] if it was released, or
// [ErrLost] and says why. It asks no server.
func (p *Permit) Err() error {
	if err := p.permit.Err(); err != nil {
		return fmt.Errorf("pgbaton: permit of semaphore %q: %w", p.semaphore.name, err)
	}
	return nil
}

// Release ends the permit. Nil means that it was held without a break until this call. An error that matches
// [ErrLost] means that it was not, or that nobody can tell; there is nothing left to release.
//
// It is safe to call twice, in defer, and after ctx has ended: a release is never cut short, and ctx is not used. It
// returns within TTL on a dead network. A second call returns what the first did.
func (p *Permit) Release(ctx context.Context) error {
	if err := p.permit.Release(); err != nil {
		return fmt.Errorf("pgbaton: release permit of semaphore %q: %w", p.semaphore.name, err)
	}
	return nil
}

// The slots are sent as text, which every driver can.
const sqlHoldsSlots = `SELECT pgbaton.holds_slots($1, $2, $3::text::integer[], $4)`

// AssertPermit makes the caller's transaction safe from the holder's own delays: call it before the transaction's
// first write. tx is a pgx.Tx, or a *sql.Tx by [SQLTx], in the semaphore's database.
//
// On success the permit is held by the database's clock, and nobody else is given its slots before tx has ended,
// even if they expire: so at most as many transactions as the semaphore has permits are under way at any time.
// On failure roll back. The error matches [ErrLost] or [ErrNotHeld] if the permit is known to be over (nothing was
// sent), or [ErrStaleToken] if it has expired, or others have the slots by now.
func AssertPermit(ctx context.Context, tx Tx, p *Permit) error {
	p.permit.Asserted() // before the look: a release that is not seen yet sees this, and hands nothing over
	if err := p.permit.Err(); err != nil {
		return fmt.Errorf("pgbaton: assert permit: semaphore %q: %w", p.semaphore.name, err)
	}
	semaphore, holder, slots, base := p.permit.Claim()
	var held bool
	list := make([]string, len(slots))
	for i, slot := range slots {
		list[i] = strconv.Itoa(int(slot))
	}
	_, err := queryRow(ctx, tx, []any{&held}, sqlHoldsSlots, semaphore, holder, "{"+strings.Join(list, ",")+"}", base)
	if err == nil && !held {
		err = fmt.Errorf("%w: it has expired", ErrStaleToken)
	}
	if err != nil {
		return fmt.Errorf("pgbaton: assert permit: semaphore %q: %w", p.semaphore.name, pgerr.Schema(translate(err)))
	}
	return nil
}
