package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// NotDueError reports, beside the [ErrNotAcquired] of [Client.Once], when a run was and when the next may be.
type NotDueError struct {
	Name    string
	Running bool      // the window has passed, but somebody else runs it, or is about to; else nobody has looked
	Last    time.Time // when the last run began, by the database's clock; zero if it is not known
	Next    time.Time // when the next one may begin; zero if it is not known
}

func (e *NotDueError) Error() string {
	switch {
	case e.Running && e.Last.IsZero():
		return "somebody else is running it"
	case e.Running:
		return "somebody else is running it; the last run that is known began at " + stamp(e.Last)
	}
	return fmt.Sprintf("its last run began at %s, the next may at %s", stamp(e.Last), stamp(e.Next))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Once runs fn if the name's last run began at least every ago, by the database's clock, and nobody runs it now. It is
// for what cron calls in every replica: let each call Once at the scheduled time, with a window that is longer than the
// replicas' clocks differ and shorter than the time between two runs; exactly one runs fn.
//
// The others return at once, with [ErrNotAcquired] and a [*NotDueError], which reports when the last run was and when
// the next may be. Where fn takes longer than the window, runs still do not overlap: fn runs under the exclusive lock of
// [Name](name), as in [Client.Do], and its context ends with a cause that matches [ErrLost] when that is lost.
// The error of a run is fn's, joined with [ErrLost] when the lock was lost before fn had returned.
//
// A run is recorded before fn begins, and the record is on the server's disk by then. So there is at most one run in a
// window, also when fn fails or the process dies in it; it is not tried again before the next, unless
// [LockOpts.RetryFailed] says so. (An asynchronous standby that is promoted may not know of the last runs.) An error that
// is neither fn's nor ErrNotAcquired says that fn did not run; the run may be recorded all the same.
//
// While the server cannot be reached, Once tries until ctx ends. It returns within 50 ms of the end of ctx as long as fn has
// not begun. After fn it records how the run has ended and releases the lock, which on a dead network takes up to
// [Config.TTL].
//
// # How it works
//
// The table pgbaton.last_run has a row for each name, called as [Lock.Assert] fences its key. The SQL function
// pgbaton.start_run compares and writes it in one statement, pgbaton.end_run says how the run has ended. A client looks at the
// row before it tries for the lock, so that only clients that find a run due try.
//
// Two runs in one window cannot be, wherever a process stops or is frozen:
//
//   - before its lock is granted, or before its record is written, it has not run. When it goes on, the row has the token of
//     the run meanwhile, which is greater if that lock is newer, or a beginning within the window. Either refuses the
//     record. A record that comes first refuses the other's in the same way.
//   - after the record is written and before fn begins, the record counts: others wait for the window to pass. When the process
//     goes on, it does not begin fn if its lock is lost, or if more than half of the window has passed since the record was
//     sent: a run that began that late would nearly meet the next one. Such a run counts as failed.
//   - after its last look at the lock and the clock, which is the statement before fn's first, a process that is paused is
//     one that is paused in fn: its context has ended when it goes on, and [Lock.Assert] refuses what it writes.
//   - a record whose answer was lost with the connection is sent again, with the same token, and counts once.
//
// So the records of two runs are at least a window apart, and the beginnings of their funcs half a window, where that is
// at least a second. Between shorter windows a slow network alone may use up the difference.
func (c *Client) Once(
	ctx context.Context, name string, every time.Duration, fn func(ctx context.Context, lock *Lock) error,
) error {
	return c.OnceWith(ctx, name, every, nil, fn)
}

// OnceWith is [Client.Once] with settings.
func (c *Client) OnceWith(
	ctx context.Context, name string, every time.Duration, opts *LockOpts, fn func(ctx context.Context, lock *Lock) error,
) error {
	job := job{client: c, name: name, every: every}
	err := c.runnable(name)
	if err == nil {
		job.LockOpts, err = opts.checked(c, "OnceWith", usesMaxHold|usesRun)
	}
	if err == nil && every <= 0 {
		err = fmt.Errorf("the window is %v, the least is 1µs", every)
	}
	var lock *Lock
	if err == nil {
		lock, err = job.begin(ctx)
	}
	if err != nil {
		return wrap(err, "run of %q", name)
	}
	return job.run(ctx, lock, fn)
}

// runnable returns what is wrong with a name or the client for calls about runs.
func (c *Client) runnable(name string) error {
	if err := validateName("run", name, maxNameLength); err != nil {
		return err
	}
	return c.sideSession()
}

// runResource returns under which name the runs of a name are recorded.
func runResource(name string) []byte { return []byte(Name(name).resource()) }

// job is a call of Once.
type job struct {
	LockOpts

	client *Client
	name   string
	every  time.Duration

	seen NotDueError // the last run, as of the last look
	sent time.Time   // when the record was sent
}

// begin takes the lock of a run that is due and is recorded.
func (j *job) begin(ctx context.Context) (*Lock, error) {
	if due, err := j.start(ctx, nil); err != nil || !due {
		return nil, cmp.Or(err, j.notDue())
	}
	lock, err := j.acquire(ctx)
	if err != nil {
		return nil, err
	}
	if err = j.record(ctx, lock); err != nil {
		lock.hold.GiveBack() //nolint:contextcheck // ctx may have ended
		return nil, err
	}
	return lock, nil
}

// notDue is the error of a run that is not due.
func (j *job) notDue() error { return fmt.Errorf("%w: %w", ErrNotAcquired, &j.seen) }

// acquire tries for the lock, again while the server cannot be reached.
func (j *job) acquire(ctx context.Context) (*Lock, error) {
	for attempt := 1; ; attempt++ {
		lock, err := j.take(ctx)
		switch {
		case err == nil:
			if j.MaxHold > 0 {
				limit(lock.hold, j.MaxHold)
			}
			return lock, nil
		case errors.Unwrap(err) == ErrNotAcquired, //nolint:errorlint // with another reason beside it nobody need be running it
			errors.Is(err, lockerr.HeldHere) && ctx.Err() == nil:
			j.seen.Running = true
			return nil, j.notDue()
		case ctx.Err() != nil, !errors.Is(err, ErrNotAcquired):
			return nil, err
		}
		if ended := backoff.Wait(ctx, attempt); ended != nil {
			return nil, err
		}
	}
}

// take tries for the lock once.
func (j *job) take(ctx context.Context) (*Lock, error) {
	c, key := j.client, Name(j.name)
	hold, err := c.locks.Acquire(ctx, c.namedFor(key, advisory.OfRun), advisory.Exclusive, true)
	if err != nil {
		return nil, wrap(err, "acquire %s", key.what())
	}
	return &Lock{client: c, key: key, hold: hold, parent: ctx}, nil
}

// record writes that the run begins, unless it is no longer due.
func (j *job) record(ctx context.Context, lock *Lock) error {
	j.sent = time.Now()
	due, err := j.start(ctx, lock)
	if err != nil || due {
		return err
	}
	// An answer may have been lost, and the record been there when it was sent again.
	last, err := j.client.lastRun(ctx, j.name)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case err != nil || last.Token != lock.Token():
		return j.notDue()
	}
	return nil
}

// leastLate is how late a run may begin at the least: shorter windows than two of it are not told from a slow network.
const leastLate = time.Second / 2

// run runs fn under the lock, and records how it has ended.
func (j *job) run(ctx context.Context, lock *Lock, fn func(ctx context.Context, lock *Lock) error) (err error) {
	failed, reason := true, "the func panicked"
	defer func() {
		j.end(ctx, lock, failed, reason)
		err = also(err, lock.Release(ctx))
	}()
	held, cancel := context.WithCancelCause(lock.holding())
	defer cancel(nil)
	lock.hold.OnEnd(cancel)
	if lock.Err() != nil {
		return nil // but for what the release says
	}
	if late := time.Since(j.sent); late > max(j.every/2, leastLate) {
		err = fmt.Errorf("%w: it was recorded and did not begin within half of the window, %v: "+
			"this process, the network or the server stalled for %v", ErrNotAcquired, j.every/2, late)
		reason = err.Error()
		return wrap(err, "run of %q", j.name)
	}
	err = fn(held, lock)
	if failed = err != nil; failed {
		reason = err.Error()
	}
	return err
}

var stmtStartRun = &pipeline.Statement{
	Name: "pgbaton_start_run",
	SQL: "SELECT due, (extract(epoch FROM last_run) * 1000000)::bigint, (extract(epoch FROM next_run) * 1000000)::bigint, disbelieved " +
		"FROM pgbaton.start_run($1, make_interval(secs => $2), $3, $4, $5)",
}

// start looks whether a run is due, and with a lock records that it begins.
func (j *job) start(ctx context.Context, lock *Lock) (due bool, err error) {
	window := strconv.FormatFloat(max(j.every, time.Microsecond).Seconds(), 'f', -1, 64)
	var token []byte
	if lock != nil {
		token = strconv.AppendInt(nil, int64(lock.Token()), 10)
	}
	rows, err := j.client.rows(ctx, stmtStartRun, runResource(j.name), []byte(window), token,
		strconv.AppendBool(nil, j.RetryFailed), strconv.AppendBool(nil, j.Force))
	if err == nil && (len(rows) != 1 || len(rows[0]) != 4) { //nolint:mnd // as in the statement
		err = errRunAnswer
	}
	if err != nil {
		return false, err
	}
	j.seen = NotDueError{Name: j.name, Last: micros(rows[0][1]), Next: micros(rows[0][2])}
	if string(rows[0][3]) == "t" {
		j.client.journal.Report("the last run of a job lies in the future by the database's clock, and is not believed",
			fmt.Errorf("%q: %s", j.name, stamp(j.seen.Last)))
	}
	return string(rows[0][0]) == "t", nil
}

var errRunAnswer = errors.New("the server's answer is not what the schema promises")

var stmtEndRun = &pipeline.Statement{Name: "pgbaton_end_run", SQL: "SELECT pgbaton.end_run($1, $2, $3, $4)"}

// maxRunError is how many bytes of a run's error are sent. The schema keeps somewhat less.
const maxRunError = 4000

// end records how the run has ended, also after ctx has, as long as the lock is held: a run that has lost it failed.
func (j *job) end(ctx context.Context, lock *Lock, failed bool, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.client.cfg.TTL)
	defer cancel()
	lock.hold.OnEnd(func(error) { cancel() })
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason[:min(len(reason), maxRunError)], ""), "\x00", "")
	_, err := j.client.rows(ctx, stmtEndRun, runResource(j.name), strconv.AppendInt(nil, int64(lock.Token()), 10),
		strconv.AppendBool(nil, failed), []byte(reason))
	if err != nil {
		j.client.journal.Report("the end of a run could not be recorded; it counts as failed", fmt.Errorf("%q: %w", j.name, err))
	}
}

// Run is the last run of a name by [Client.Once].
type Run struct {
	Name   string
	Token  Token     // of the lock under which it ran
	Began  time.Time // by the database's clock
	Ended  time.Time // zero if it goes on, or nobody has said that it has ended
	Failed bool      // its func returned an error or panicked
	Error  string    // the error's text, cut to 1,000 characters
}

var stmtLookRun = &pipeline.Statement{
	Name: "pgbaton_look_run",
	SQL: "SELECT token, (extract(epoch FROM last_run) * 1000000)::bigint, (extract(epoch FROM ended_at) * 1000000)::bigint, " +
		"failed, error FROM pgbaton.look_run($1)",
}

// LastRun returns when the name's last run by [Client.Once] was, in whichever process, and how it ended. [ErrNotFound] means
// that there is none that is known.
func (c *Client) LastRun(ctx context.Context, name string) (Run, error) {
	err := c.runnable(name)
	var last Run
	if err == nil {
		last, err = c.lastRun(ctx, name)
	}
	if err != nil {
		return Run{}, wrap(err, "last run of %q", name)
	}
	return last, nil
}

func (c *Client) lastRun(ctx context.Context, name string) (Run, error) {
	rows, err := c.rows(ctx, stmtLookRun, runResource(name))
	switch {
	case err != nil:
		return Run{}, err
	case len(rows) == 0:
		return Run{}, fmt.Errorf("%w: no run of it is known", ErrNotFound)
	case len(rows[0]) != 5: //nolint:mnd // as in the statement
		return Run{}, errRunAnswer
	}
	row := rows[0]
	token, err := strconv.ParseInt(string(row[0]), 10, 64)
	if err != nil {
		return Run{}, errRunAnswer
	}
	return Run{
		Name: name, Token: Token(token), Began: micros(row[1]), Ended: micros(row[2]),
		Failed: string(row[3]) == "t", Error: string(row[4]),
	}, nil
}

var stmtForgetRun = &pipeline.Statement{Name: "pgbaton_forget_run", SQL: "SELECT pgbaton.forget_run($1)"}

// ForgetRun forgets the name's last run, so that the next may begin at once. A run that goes on is not stopped, and keeps its
// lock: until it has ended, no other begins. [ErrNotFound] says that there was none that is known.
func (c *Client) ForgetRun(ctx context.Context, name string) error {
	err := c.runnable(name)
	var rows [][][]byte
	if err == nil {
		rows, err = c.rows(ctx, stmtForgetRun, runResource(name))
	}
	if err == nil && (len(rows) != 1 || string(rows[0][0]) != "t") {
		err = fmt.Errorf("%w: no run of it is known", ErrNotFound)
	}
	if err != nil {
		return wrap(err, "forget the last run of %q", name)
	}
	return nil
}

// micros reads microseconds since 1970; NULL is no time.
func micros(text []byte) time.Time {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(n)
}
