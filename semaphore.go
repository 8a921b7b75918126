package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/semaphore"
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
// see that its session has ended. When it is paused, they can after TTL. A client behind a pooler in
// transaction mode, has no session, so what it leaves behind is always there for TTL.
//
// Within the process waiters are served in the order of their arrival, and released permits are handed to
// them without asking the server, for a second at most. Waiting processes are in PostgreSQL's own queue, and the
// first of them looks for permits until it has what its first waiter wants; a process that comes later waits behind it. Behind
// a pooler they look every now and then instead, and one of them at a time is let through first, in turn with
// the processes in the queue. A client that holds [Config.MaxHeld] locks looks every now and then as well: a place in the
// queue is a lock.
type Semaphore struct {
	client *Client
	name   string
	line   *semaphore.Line
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

// SemaphoreOpts are the settings of [Client.Semaphore]. Nil means the defaults.
type SemaphoreOpts struct {
	// Revision is for a capacity that changes with the code, in a rolling deploy too. It counts the changes, from 1: a
	// change of the capacity in the code adds one. Of all revisions that the semaphore was opened with the greatest
	// decides. The first process with it resizes the semaphore, as [Semaphore.Resize] does; processes with smaller ones, and
	// processes without, take the capacity as it is. So code of before and after the change runs side by side, and a rollback
	// leaves the capacity as it is. A Resize by hand is kept until the next revision.
	//
	// The error matches [ErrCapacityMismatch] when the greatest revision came with another capacity: two changes have the
	// same number.
	//
	// Defaults to zero: the capacity does not change with the code.
	Revision int
}

// Semaphore creates the semaphore of a name, or opens it if there is one. The capacity, at least 1 and at most
// 10,000, must be the one that it has, else the error matches [ErrCapacityMismatch] and says both; see
// [Semaphore.Resize], and [SemaphoreOpts.Revision] for a capacity that changes with the code. A capacity of 0 opens a
// semaphore that exists, whatever its capacity; if there is none the error matches [ErrNotFound]. A name is one to 512
// bytes of UTF-8 without NUL. The client needs [Config.MaxConns] of 3 or more. At most one opts may be given.
//
// A semaphore belongs to the database role that made it, or the service that the role is a member of. Others may use it
// when they are granted that role.
func (c *Client) Semaphore(ctx context.Context, name string, capacity int, opts ...*SemaphoreOpts) (*Semaphore, error) {
	s, err := c.semaphore(ctx, name, capacity, opts)
	if err != nil {
		return nil, wrap(err, "semaphore %q", name)
	}
	return s, nil
}

func (c *Client) semaphore(ctx context.Context, name string, capacity int, opts []*SemaphoreOpts) (*Semaphore, error) {
	var o SemaphoreOpts
	if len(opts) > 0 && opts[0] != nil {
		o = *opts[0]
	}
	switch {
	case len(opts) > 1:
		return nil, fmt.Errorf("%d SemaphoreOpts are given, the most is one", len(opts))
	case o.Revision < 0 || o.Revision > math.MaxInt32:
		return nil, fmt.Errorf("the revision is %d, the least is 1", o.Revision)
	case o.Revision > 0 && capacity == 0:
		return nil, fmt.Errorf("revision %d has no capacity", o.Revision)
	}
	var wanted []byte // NULL: as it is
	if capacity != 0 {
		if err := validateCapacity(capacity); err != nil {
			return nil, err
		}
		wanted = strconv.AppendInt(nil, int64(capacity), 10)
	}
	s, has, err := c.openSemaphore(ctx, name, wanted, o.Revision)
	switch {
	case err != nil:
		return nil, err
	case capacity != 0 && has.revision == 0 && has.capacity != capacity:
		return nil, fmt.Errorf("%w: it has %d, not %d: open it with that or with 0, or Resize it, or count the "+
			"changes by SemaphoreOpts.Revision", ErrCapacityMismatch, has.capacity, capacity)
	case o.Revision > 0 && has.revision == o.Revision && has.declared != capacity:
		return nil, fmt.Errorf("%w: revision %d came with %d elsewhere, and with %d here: the later change "+
			"needs a greater number", ErrCapacityMismatch, o.Revision, has.declared, capacity)
	}
	return s, nil
}

// semaphoreRow is what a semaphore's row says. A revision of 0 is none.
type semaphoreRow struct{ id, capacity, revision, declared int }

func validateCapacity(capacity int) error {
	switch {
	case capacity < 1:
		return fmt.Errorf("the capacity is %d, the least is 1", capacity)
	case capacity > maxCapacity:
		return fmt.Errorf("the capacity is %d, the most is %d", capacity, maxCapacity)
	}
	return nil
}

func (c *Client) openSemaphore(
	ctx context.Context, name string, capacity []byte, revision int,
) (s *Semaphore, has semaphoreRow, err error) {
	if err := validateName("semaphore", name, maxNameLength); err != nil {
		return nil, has, err
	}
	if err := c.thirdConnection(); err != nil {
		return nil, has, err
	}
	rows, err := c.rows(ctx, &stmtOpenSemaphore, []byte(name), capacity, strconv.AppendInt(nil, int64(revision), 10))
	if err != nil {
		return nil, has, err
	}
	if len(rows) == 0 {
		return nil, has, fmt.Errorf("%w: create it with a capacity", ErrNotFound)
	}
	for i, field := range []*int{&has.id, &has.capacity, &has.revision, &has.declared} {
		if text := rows[0][i]; text != nil {
			if *field, err = strconv.Atoi(string(text)); err != nil {
				return nil, has, err
			}
		}
	}
	id := int32(has.id) //nolint:gosec // it is an integer of the server's
	line := c.semaphores.Line(id, name, Name("pgbaton/semaphore/"+name).key, has.capacity)
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

// made returns an error for a semaphore that [Client.Semaphore] has not made.
func (s *Semaphore) made() error {
	if s == nil || s.client == nil {
		return fmt.Errorf("%w: it is nil or zero: Client.Semaphore makes one", ErrNotFound)
	}
	return nil
}

// what names the semaphore in errors.
func (s *Semaphore) what() string {
	if s.made() != nil {
		return "semaphore"
	}
	return fmt.Sprintf("semaphore %q", s.name)
}

// permitsOf names permits in errors.
func permitsOf(n int, s *Semaphore) string {
	name := "a semaphore"
	if s.made() == nil {
		name = strconv.Quote(s.name)
	}
	if n == 1 {
		return "permit of " + name
	}
	return fmt.Sprintf("%d permits of %s", n, name)
}

// Acquire waits until it holds n permits at once, or ctx ends. ctx covers this call only; the permit outlives it.
//
// On success they are really held, under one [Token] that is greater than that of every earlier holder of any
// of them. On failure nothing is held or waited for, and the error matches [ErrNotAcquired] and the
// context's error when the context ended, [ErrCapacityMismatch] when n is more than the semaphore has,
// [ErrNotFound] if it was removed, or [ErrClosed]. It returns within 50 ms of the context's end. While the
// server cannot be reached, it goes on trying until the context ends.
//
// A wait for many is not passed by later ones for fewer.
func (s *Semaphore) Acquire(ctx context.Context, n int) (*Permit, error) {
	p, err := s.acquire(ctx, n, false)
	return p.limited(err)
}

// TryAcquire is [Semaphore.Acquire] that does not wait for other holders: it returns [ErrNotAcquired] when there
// are not enough permits, or others wait for them, or did a moment ago.
func (s *Semaphore) TryAcquire(ctx context.Context, n int) (*Permit, error) {
	p, err := s.acquire(ctx, n, true)
	return p.limited(err)
}

func (s *Semaphore) acquire(ctx context.Context, n int, try bool) (*Permit, error) {
	p, err := s.wait(ctx, n, try)
	if err != nil {
		return nil, wrap(err, "acquire %s", permitsOf(n, s))
	}
	return &Permit{semaphore: s, permit: p, n: n, parent: ctx}, nil
}

func (s *Semaphore) wait(ctx context.Context, n int, try bool) (*semaphore.Permit, error) {
	if err := s.made(); err != nil {
		return nil, err
	}
	switch {
	case n < 1:
		return nil, errors.New("the least is 1")
	case n > maxCapacity:
		return nil, fmt.Errorf("%w: none has more than %d", lockerr.OverCapacity, maxCapacity)
	}
	p, err := s.line.Acquire(ctx, n, try)
	if err != nil {
		return nil, pgerr.Schema(translate(err))
	}
	return p, nil
}

// Do runs fn while it holds n permits, as [Client.DoWith] does with a lock.
func (s *Semaphore) Do(
	ctx context.Context, n int, opts *LockOpts, fn func(ctx context.Context, permit *Permit) error,
) (err error) {
	if err := s.made(); err != nil {
		return wrap(err, "do with %s", permitsOf(n, s))
	}
	o, err := opts.checked(s.client, "Semaphore.Do", usesWait|usesMaxHold)
	if err != nil {
		return wrap(err, "do with %s", permitsOf(n, s))
	}
	wait, cancel := o.waiting(ctx)
	p, err := s.acquire(wait, n, o.Wait == NoWait)
	cancel()
	if err != nil {
		return err
	}
	p.parent = ctx
	if o.MaxHold > 0 {
		limit(p.permit, o.MaxHold)
	}
	defer func() { err = also(err, p.Release(ctx)) }()
	held, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p.permit.OnEnd(stop)
	return fn(held, p)
}

// Resize gives the semaphore another capacity, for everybody. Raising it serves waiters at once, or within a
// fraction of a second if they are elsewhere. Lowering it takes permits from nobody: their holders finish, and
// none is granted until fewer are held than the new capacity; only that for a second other processes may
// still hand theirs on among their own goroutines. A wait for more than the capacity ends with [ErrCapacityMismatch].
// While others hold rows of the semaphore, it tries until ctx ends. If ctx ends during the call, it may have taken
// effect.
func (s *Semaphore) Resize(ctx context.Context, capacity int) error {
	err := s.made()
	if err == nil {
		err = validateCapacity(capacity)
	}
	var rows [][][]byte
	if err == nil {
		rows, err = s.client.rows(ctx, &stmtResizeSemaphore, []byte(s.name), strconv.AppendInt(nil, int64(capacity), 10))
	}
	if err == nil && (len(rows) != 1 || rows[0][0] == nil) {
		err = errRemoved
	}
	if err != nil {
		return wrap(err, "resize %s", s.what())
	}
	s.line.Resized(capacity)
	return nil
}

var errRemoved = fmt.Errorf("%w: it was removed", ErrNotFound)

// SemaphoreState is what a look at a semaphore has found.
type SemaphoreState struct {
	Capacity  int      // how many permits there are for everybody together
	Available int      // how many could be acquired, if nobody waited for them
	Holders   []Holder // in the order of their claims
}

// State returns how many permits there are, how many of them are free, and the holders of the others. While more are held
// than there are, since the capacity was lowered, none is granted. The holders are looked up a moment after the rest.
// [ErrNotFound] means that the semaphore was removed.
func (s *Semaphore) State(ctx context.Context) (SemaphoreState, error) {
	state, err := s.state(ctx)
	if err != nil {
		return SemaphoreState{}, wrap(err, "state of %s", s.what())
	}
	return state, nil
}

func (s *Semaphore) state(ctx context.Context) (state SemaphoreState, err error) {
	if err = s.made(); err != nil {
		return state, err
	}
	rows, err := s.client.rows(ctx, &stmtSemaphoreState, []byte(s.name))
	if err == nil && len(rows) != 1 {
		err = errRemoved
	}
	if err != nil {
		return state, err
	}
	var err1, err2 error
	state.Capacity, err1 = strconv.Atoi(string(rows[0][0]))
	state.Available, err2 = strconv.Atoi(string(rows[0][1]))
	if err = errors.Join(err1, err2); err != nil {
		return state, err
	}
	state.Holders, err = s.holders(ctx)
	return state, err
}

func (s *Semaphore) holders(ctx context.Context) ([]Holder, error) {
	rows, err := s.client.rows(ctx, &stmtSemaphoreHolders, []byte(s.name))
	if err != nil {
		return nil, err
	}
	holders := make([]Holder, len(rows))
	for i, row := range rows {
		permits, err1 := strconv.Atoi(string(row[2]))
		token, err2 := strconv.ParseInt(string(row[3]), 10, 64)
		expires, err3 := strconv.ParseInt(string(row[4]), 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		holders[i] = Holder{
			Client: string(row[1]), Permits: permits, Token: Token(token), ExpiresIn: time.Duration(expires) * time.Millisecond,
		}
	}
	return holders, nil
}
