package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/permit"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// maxCapacity bounds a semaphore: each slot is a row, and a claim may look at all of them.
const maxCapacity = 10_000

// Semaphore hands out a limited number of permits among all processes that use its name in one database. It is
// made by [Client.Semaphore], is safe for concurrent use, and holds nothing itself.
//
// # How it works
//
// Each slot of a semaphore is a row. A permit is a claim of rows for [Config.TTL] by the database's clock, which the
// client renews three times in that time. When the process dies its rows can be claimed by others at once: they
// see that its session has ended. When it stands still, they can after TTL. A client behind a pooler in
// transaction mode, see [Config.Reduced], has no session, so what it leaves behind is always there for TTL.
//
// Within the process waiters are served in the order of their arrival, and released permits are handed to
// them without asking the server, for a second at most. Processes that wait stand in PostgreSQL's own queue, and the
// first of them looks for permits until it has what its first waiter wants; who comes later waits behind it. Behind
// a pooler they look every now and then instead, and one of them at a time is let through first, in turn with those
// who stand in the queue. A client that holds [Config.MaxHeld] locks looks every now and then as well: a place in the
// queue is a lock.
type Semaphore struct {
	client *Client
	name   string
	line   *permit.Line
}

var (
	stmtOpenSemaphore = pipeline.Statement{
		Name: "pgbaton_open_semaphore", SQL: "SELECT * FROM pgbaton.open_semaphore($1, $2, $3)",
	}
	// By name, because an id is worth nothing on another server.
	stmtResizeSemaphore = pipeline.Statement{
		Name: "pgbaton_resize_semaphore",
		SQL:  "SELECT pgbaton.resize_semaphore(o.id, $2) FROM pgbaton.open_semaphore($1, NULL) AS o",
	}
	stmtSemaphoreState = pipeline.Statement{
		Name: "pgbaton_semaphore_state",
		SQL:  "SELECT s.* FROM pgbaton.open_semaphore($1, NULL) AS o, pgbaton.semaphore_state(o.id) AS s",
	}
	stmtSemaphoreHolders = pipeline.Statement{
		Name: "pgbaton_semaphore_holders",
		SQL:  "SELECT h.* FROM pgbaton.open_semaphore($1, NULL) AS o, pgbaton.semaphore_holders(o.id) AS h",
	}
)

// Semaphore creates the semaphore of a name, or opens it if there is one. The capacity, at least 1 and at most
// 10,000, must be the one that it has, else the error matches [ErrCapacityMismatch] and says both; see
// [Semaphore.Resize], and [Client.SemaphoreRevision] for a capacity that changes with the code. A name is one to 512
// bytes of UTF-8 without NUL. The client needs [Config.MaxConns] of 3 or more.
//
// A semaphore belongs to the database role that made it, or the service that the role is a member of. Others may use it
// when they are granted that role.
func (c *Client) Semaphore(ctx context.Context, name string, capacity int) (*Semaphore, error) {
	return c.semaphore(ctx, name, capacity, 0)
}

// SemaphoreRevision is [Client.Semaphore] for a capacity that changes with the code, in a rolling deploy too. The
// revision, from 1, counts the changes: who changes the capacity in the code adds one. Of all revisions that the
// semaphore was opened with the greatest decides. The first process with it resizes the semaphore, as
// [Semaphore.Resize] does; those with smaller ones, and those that open it by [Client.Semaphore], take the capacity as
// it is. So code of before and after the change runs side by side, and a rollback leaves the capacity as it is.
//
// The error matches [ErrCapacityMismatch] when the greatest revision came with another capacity: two changes have the
// same number. A Resize by hand is kept until the next revision.
func (c *Client) SemaphoreRevision(ctx context.Context, name string, capacity, revision int) (*Semaphore, error) {
	if revision < 1 || revision > math.MaxInt32 {
		return nil, fmt.Errorf("pgbaton: semaphore %q: the revision is %d, the least is 1", name, revision)
	}
	return c.semaphore(ctx, name, capacity, revision)
}

func (c *Client) semaphore(ctx context.Context, name string, capacity, revision int) (*Semaphore, error) {
	if err := validateCapacity(name, capacity); err != nil {
		return nil, err
	}
	s, has, err := c.openSemaphore(ctx, name, []byte(strconv.Itoa(capacity)), revision)
	switch {
	case err != nil:
		return nil, err
	case has.revision == 0 && has.capacity != capacity:
		return nil, fmt.Errorf("pgbaton: semaphore %q: %w: it has %d, not %d: open it with that, or Resize it, or count the "+
			"changes with SemaphoreRevision", name, ErrCapacityMismatch, has.capacity, capacity)
	case revision > 0 && has.revision == revision && has.declared != capacity:
		return nil, fmt.Errorf("pgbaton: semaphore %q: %w: revision %d came with %d elsewhere, and with %d here: the later change "+
			"needs a greater number", name, ErrCapacityMismatch, revision, has.declared, capacity)
	}
	return s, nil
}

// OpenSemaphore opens a semaphore that exists, whatever its capacity. If there is none the error matches
// [ErrNotFound].
func (c *Client) OpenSemaphore(ctx context.Context, name string) (*Semaphore, error) {
	s, _, err := c.openSemaphore(ctx, name, nil, 0)
	return s, err
}

// semaphoreRow is what a semaphore's row says. A revision of 0 is none.
type semaphoreRow struct{ id, capacity, revision, declared int }

func validateCapacity(name string, capacity int) error {
	switch {
	case capacity < 1:
		return fmt.Errorf("pgbaton: semaphore %q: the capacity is %d, the least is 1", name, capacity)
	case capacity > maxCapacity:
		return fmt.Errorf("pgbaton: semaphore %q: the capacity is %d, the most is %d", name, capacity, maxCapacity)
	}
	return nil
}

func (c *Client) openSemaphore(
	ctx context.Context, name string, capacity []byte, revision int,
) (s *Semaphore, has semaphoreRow, err error) {
	if err := validateName("semaphore", name, maxNameLength); err != nil {
		return nil, has, fmt.Errorf("pgbaton: open semaphore: %w", err)
	}
	if err := c.thirdConnection(); err != nil {
		return nil, has, fmt.Errorf("pgbaton: open semaphore %q: %w", name, err)
	}
	rows, err := c.rows(ctx, &stmtOpenSemaphore, []byte(name), capacity, []byte(strconv.Itoa(revision)))
	if err != nil {
		return nil, has, fmt.Errorf("pgbaton: open semaphore %q: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, has, fmt.Errorf("pgbaton: open semaphore %q: %w: create it with a capacity", name, ErrNotFound)
	}
	for i, field := range []*int{&has.id, &has.capacity, &has.revision, &has.declared} {
		if text := rows[0][i]; text != nil {
			if *field, err = strconv.Atoi(string(text)); err != nil {
				return nil, has, fmt.Errorf("pgbaton: open semaphore %q: %w", name, err)
			}
		}
	}
	id := int32(has.id) //nolint:gosec // it is an integer of the server's
	line := c.permits.Line(id, name, Name("pgbaton/semaphore/"+name).key, has.capacity)
	return &Semaphore{client: c, name: name, line: line}, has, nil
}

// rows runs a statement that may run twice on the session for rows.
func (c *Client) rows(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error) {
	rows, err := c.sidecar.Query(ctx, statement, params...)
	if err != nil {
		return nil, pgerr.Schema(translate(err))
	}
	return rows, nil
}

// Name is the semaphore's name.
func (s *Semaphore) Name() string { return s.name }

// Acquire waits until it holds n permits at once, or ctx ends. ctx covers this call only; the permit outlives it.
//
// On success they are really held, under one [Token] that is greater than that of every earlier holder of any
// of them. On failure nothing is held or waited for, and the error matches [ErrNotAcquired] and the
// context's error when the context ended, [ErrOverCapacity] when n is more than the semaphore has,
// [ErrNotFound] if it was removed, or [ErrClosed]. It returns within 50 ms of the context's end. While the
// server cannot be reached, it goes on trying until the context ends.
//
// Who wants many is not passed by those who come later and want fewer.
func (s *Semaphore) Acquire(ctx context.Context, n int) (*Permit, error) {
	return s.client.limitPermit(s.acquire(ctx, n, false))
}

// TryAcquire is [Semaphore.Acquire] that does not wait for other holders: it returns [ErrNotAcquired] when there
// are not enough permits, or others wait for them, or did a moment ago.
func (s *Semaphore) TryAcquire(ctx context.Context, n int) (*Permit, error) {
	return s.client.limitPermit(s.acquire(ctx, n, true))
}

func (s *Semaphore) acquire(ctx context.Context, n int, try bool) (*Permit, error) {
	if n < 1 {
		return nil, fmt.Errorf("pgbaton: semaphore %q: %d permits wanted, the least is 1", s.name, n)
	}
	if n > maxCapacity {
		return nil, fmt.Errorf("pgbaton: acquire %d of semaphore %q: %w: none has more than %d", n, s.name, ErrOverCapacity, maxCapacity)
	}
	p, err := s.line.Acquire(ctx, n, try)
	if err != nil {
		return nil, fmt.Errorf("pgbaton: acquire %d of semaphore %q: %w", n, s.name, pgerr.Schema(translate(err)))
	}
	return &Permit{semaphore: s, permit: p, n: n, parent: ctx}, nil
}

// Do runs fn while it holds n permits, as [Client.Do] does with a lock.
func (s *Semaphore) Do(ctx context.Context, n int, fn func(ctx context.Context, permit *Permit) error) error {
	return s.DoWith(ctx, n, nil, fn)
}

// Resize gives the semaphore another capacity, for everybody. Raising it serves waiters at once, or within a
// fraction of a second if they are elsewhere. Lowering it takes permits from nobody: those who hold them finish, and
// none is granted until fewer are held than the new capacity; only that for a second other processes may
// still hand theirs on among their own goroutines. Who waits for more than the capacity gets [ErrOverCapacity].
// While others hold rows of the semaphore, it tries until ctx ends. If ctx ends during the call, it may have taken
// effect.
func (s *Semaphore) Resize(ctx context.Context, capacity int) error {
	if err := validateCapacity(s.name, capacity); err != nil {
		return err
	}
	rows, err := s.client.rows(ctx, &stmtResizeSemaphore, []byte(s.name), []byte(strconv.Itoa(capacity)))
	if err == nil && (len(rows) != 1 || rows[0][0] == nil) {
		err = errRemoved
	}
	if err != nil {
		return fmt.Errorf("pgbaton: resize semaphore %q: %w", s.name, err)
	}
	s.line.Resized(capacity)
	return nil
}

// Available is how many permits could be acquired at this moment, if nobody waited for them.
func (s *Semaphore) Available(ctx context.Context) (int, error) {
	_, available, err := s.state(ctx)
	return available, err
}

// Capacity is how many permits there are for everybody together. While more are held, since it was lowered, none is
// granted.
func (s *Semaphore) Capacity(ctx context.Context) (int, error) {
	capacity, _, err := s.state(ctx)
	return capacity, err
}

func (s *Semaphore) state(ctx context.Context) (capacity, available int, err error) {
	rows, err := s.client.rows(ctx, &stmtSemaphoreState, []byte(s.name))
	if err == nil && len(rows) != 1 {
		err = errRemoved
	}
	if err == nil {
		var err1, err2 error
		capacity, err1 = strconv.Atoi(string(rows[0][0]))
		available, err2 = strconv.Atoi(string(rows[0][1]))
		err = errors.Join(err1, err2)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("pgbaton: look at semaphore %q: %w", s.name, err)
	}
	return capacity, available, nil
}

var errRemoved = fmt.Errorf("%w: it was removed", ErrNotFound)

// SemaphoreHolder is a claim of permits. Within its process, permits of a claim may be handed from goroutine to
// goroutine.
type SemaphoreHolder struct {
	Holder    string        // the client's [Config.Name]
	Permits   int           // that the claim holds
	Token     Token         // of the claim; permits handed over in the process have slightly greater ones
	ExpiresIn time.Duration // until then it is held unless it is renewed
}

// Holders lists who holds permits, in the order of their claims.
func (s *Semaphore) Holders(ctx context.Context) ([]SemaphoreHolder, error) {
	rows, err := s.client.rows(ctx, &stmtSemaphoreHolders, []byte(s.name))
	if err != nil {
		return nil, fmt.Errorf("pgbaton: look at semaphore %q: %w", s.name, err)
	}
	if len(rows) == 0 { // nobody, or no semaphore
		_, _, err := s.state(ctx)
		return nil, err
	}
	holders := make([]SemaphoreHolder, len(rows))
	for i, row := range rows {
		permits, err1 := strconv.Atoi(string(row[2]))
		token, err2 := strconv.ParseInt(string(row[3]), 10, 64)
		expires, err3 := strconv.ParseInt(string(row[4]), 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("pgbaton: look at semaphore %q: %w", s.name, err)
		}
		holders[i] = SemaphoreHolder{
			Holder: string(row[1]), Permits: permits, Token: Token(token), ExpiresIn: time.Duration(expires) * time.Millisecond,
		}
	}
	return holders, nil
}
