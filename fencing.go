package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
)

// keyResource begins the names of the resources that [Lock.Assert] fences.
const keyResource = "pgbaton:"

// maxToken is the greatest number that is a token.
const maxToken Token = 1<<53 - 1

// StaleTokenError reports, beside an [ErrStaleToken], which newer token a resource has seen.
type StaleTokenError struct {
	// Resource is the name given to [Fence], "pgbaton:" and the key for [Lock.Assert], or the table that a
	// trigger of pgbaton.fence_guard() guards.
	Resource string
	// Token is the one that was refused; zero if a guarded row was to be deleted without one.
	Token Token
	// Newest is the newest token that was seen.
	Newest Token
}

func (e *StaleTokenError) Error() string {
	return fmt.Sprintf("%d for %q, the newest seen is %d", e.Token, e.Resource, e.Newest)
}

// Assert makes the caller's transaction safe from the holder's own delays: call it before the
// transaction's first write. tx is a pgx.Tx, or a *sql.Tx by [SQLTx], in any database with the schema pgbaton.
//
// On success no newer exclusive token of the key has been seen by an Assert there, this one is recorded if it
// is exclusive, and the Assert of a newer holder waits until tx has ended: whatever tx writes is
// committed before, and seen by, whatever newer holders write. A shared lock's token is compared and not
// recorded, and shared holders do not wait for one another. So the lock may even be lost before the commit.
//
// On failure roll back. The error matches [ErrLost] or [ErrNotHeld] if the lock is known to be over (nothing
// was sent); [ErrStaleToken], with a [*StaleTokenError], if a newer token has been seen; [ErrConflict] if,
// above READ COMMITTED, another transaction fenced the key after this one's snapshot: run it again, as
// [InTx] does, and the next attempt shows whether the token is stale. While it waits for another transaction it
// ends with ctx, which costs the connection, or with [ErrNotAcquired] by the session's lock_timeout or
// statement_timeout.
//
// It fences only what is written by transactions that do the same. Where other writers cannot be trusted to, put
// a trigger of pgbaton.fence_guard() on the table.
//
// # How it works
//
// A row for each key in the table pgbaton.fence, by the SQL function pgbaton.fence(resource, token, shared), holds
// the newest exclusive token that was seen, and is locked until tx ends. pgbaton.prune_fences(interval) removes
// rows that were not used for so long; a key without a row accepts any token.
func (l *Lock) Assert(ctx context.Context, tx Tx) error {
	err := l.trouble()
	if err == nil {
		err = fence(ctx, tx, l.key.resource(), l.Token(), l.hold.Mode() == advisory.Shared)
	}
	if err != nil {
		return wrap(err, "assert %s", l.what())
	}
	return nil
}

// Fence is [Lock.Assert] for the exclusive token of a lock that is not at hand: it came with a message, in a
// header, or from another language. The resource is what all writers of a thing agree to call it, 1 to 512
// bytes of UTF-8 without NUL that do not begin with "pgbaton:"; it is not the key of a lock, and [Lock.Assert]
// does not see it. Tokens of one resource must come from locks on one key.
//
// The token of a shared lock needs [LockOpts.Shared]: it is compared and not recorded. At most one opts may be given.
//
// A token is above zero and below 2^53: zero, which means none, is an error of its own.
func Fence(ctx context.Context, tx Tx, resource string, token Token, opts ...*LockOpts) error {
	o, err := only(opts, "Fence", usesShared)
	if err == nil {
		err = validateFence(resource, token)
	}
	if err == nil {
		err = fence(ctx, tx, resource, token, o.Shared)
	}
	if err != nil {
		return wrap(err, "fence")
	}
	return nil
}

func validateFence(resource string, token Token) error {
	switch {
	case resource == "":
		return errors.New(`resource "" is empty`)
	case len(resource) > maxNameLength:
		return fmt.Errorf("resource %q… has %d bytes, the most is %d", resource[:32], len(resource), maxNameLength)
	case !utf8.ValidString(resource) || strings.ContainsRune(resource, 0):
		return fmt.Errorf("resource %q is not UTF-8 without NUL", resource)
	case strings.HasPrefix(resource, keyResource):
		return fmt.Errorf("resource %q begins with %q, which is for the keys of locks", resource, keyResource)
	case token == 0:
		return errors.New("token 0 means none: there is nothing to compare")
	case token < 0 || token > maxToken:
		return fmt.Errorf("%d is not a token: tokens are above zero and below 2^53", token)
	}
	return nil
}

const sqlFence = `SELECT pgbaton.fence($1, $2, $3)`

func fence(ctx context.Context, tx Tx, resource string, token Token, shared bool) error {
	err := rowstmt.Exec(ctx, tx, sqlFence, resource, int64(token), shared)
	switch ctxErr := ctx.Err(); {
	case err == nil:
		return nil
	case ctxErr != nil && !errors.Is(err, ctxErr):
		return fmt.Errorf("%w: %w", ctxErr, err)
	case ctxErr != nil:
		return err
	case pgerr.Code(err) == pgerr.ReadOnly:
		return fmt.Errorf("the transaction is read-only, or on a standby, and a fence is a write: %w", err)
	}
	return pgerr.Schema(translate(waitEnded(ctx, err)))
}

// resource is the name under which the key is fenced. A name and its number are one lock, so they are one
// resource.
func (k Key) resource() string {
	if k.key.Pair {
		a, b := k.key.Halves()
		return fmt.Sprintf("%spair:%d,%d", keyResource, a, b)
	}
	return fmt.Sprintf("%skey:%d", keyResource, k.key.ID)
}

// Translate adds the library's sentinels to an error of the server that came from a statement of the caller's own, not
// through pgbaton: [ErrStaleToken], with a [*StaleTokenError], from a write to a table that a trigger of
// pgbaton.fence_guard() guards or from pgbaton.fence in SQL; [ErrDeadlock], [ErrConflict] for SQLSTATE 40001, and
// [ErrNotAcquired] for a lock_timeout or NOWAIT. Other errors, nil, and one that has been translated are returned as
// they are. It reads the errors of pgx and of lib/pq.
//
// Errors of pgbaton's own functions are translated, and so are those of [InTx] and [InSQLTx] when the transaction
// ended with such an error.
func Translate(err error) error { return translate(err) }

// translate adds the library's sentinel to an error of the server, and what a stale token's error says.
func translate(err error) error {
	stale, ok := pgerr.Stale(err)
	if !ok || errors.Is(err, lockerr.StaleToken) {
		return pgerr.Translate(err)
	}
	return fmt.Errorf("%w: %w: %w", lockerr.StaleToken, &StaleTokenError{
		Resource: stale.Resource, Token: Token(stale.Token), Newest: Token(stale.Newest),
	}, err)
}
