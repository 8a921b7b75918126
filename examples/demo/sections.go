package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// section is one part of the demo: it does something to the server, and says what was seen.
type section struct {
	title string
	run   func(ctx context.Context, s *stage) (outcome, error)
}

// sections are run in this order.
var sections = []section{
	{title: "no lock", run: compare(titleUnlocked, jobRaiseUnlocked, judgeUnlocked)},
	{title: "advisory lock", run: compare(titleAdvisory, jobRaiseAdvisory, judgeAdvisory)},
	{title: "row lock", run: compare(titleRowLocked, jobRaiseRowLocked, judgeRowLocked)},
	{title: "version, no retry", run: compare(titleVersion, jobRaiseVersion, judgeVersion)},
	{title: "version, retries", run: compare(titleMutate, jobRaiseMutate, judgeMutate)},
	{title: "readers and writers", run: auditTransfers},
	{title: "holder killed", run: killHolders},
	{title: "holder frozen", run: freezeHolders},
	{title: "semaphore", run: crowdHall},
	{title: "leader killed", run: killLeaders},
}

// Titles of the tables' rows; the number is the section's.
const (
	titleUnlocked           = "1 no lock"
	titleAdvisory           = "2 advisory lock"
	titleRowLocked          = "3 row lock"
	titleVersion            = "4 version, no retry"
	titleMutate             = "5 version, retries"
	titleReadersWithoutLock = "6 readers, no lock"
	titleReadersWithLocks   = "6 readers, locks"
	titleKilled             = "7 holder killed"
	titleFrozenWithoutFence = "8 frozen, no fence"
	titleFrozenWithFence    = "8 frozen, fence"

	titleHallWithoutSemaphore = "9 no semaphore"
	titleHallWithSemaphore    = "9 semaphore"
	titleLeaderKilled         = "10 leader killed"
)

// stage is what a section has to work with.
type stage struct {
	options  *options
	pool     *pgxpool.Pool
	progress *progress
}

// outcome is what a section has seen.
type outcome struct {
	compared []row    // of the comparison
	rows     []row    // of the other table
	seen     []string // sentences about what was seen, for people
	failures []string // sentences about what was expected and did not happen
}

func (o *outcome) see(format string, args ...any) {
	o.seen = append(o.seen, fmt.Sprintf(format, args...))
}

func (o *outcome) fail(format string, args ...any) {
	o.failures = append(o.failures, fmt.Sprintf(format, args...))
}

// failOnErrors holds for every section: no statement may fail.
func (o *outcome) failOnErrors(r row) {
	if r.errors > 0 {
		o.fail("There were %s errors; the first: %s", formatCount(r.errors), r.problem)
	}
}

// measure lets workers do their jobs, and compares the mutations that they counted with what the employee's
// salary, which each raises by one, has become.
func (s *stage) measure(ctx context.Context, title string, id int64, jobs []job) (row, error) {
	if err := resetSalaries(ctx, s.pool); err != nil {
		return row{}, err
	}
	total, elapsed, err := s.perform(ctx, jobs)
	if err != nil {
		return row{}, err
	}
	salary, err := readSalary(ctx, s.pool, id)
	if err != nil {
		return row{}, err
	}
	return row{
		title:     title,
		mutations: len(total.Mutations),
		lost:      lostUpdates(len(total.Mutations), int(salary-firstSalary), total.Errors),
		reads:     total.Reads,
		torn:      total.Torn,
		conflicts: total.Conflicts,
		refused:   total.Refused,
		errors:    total.Errors,
		problem:   total.Problem,
		times:     summarize(total.Mutations),
		elapsed:   elapsed,
	}, nil
}

// perform runs one worker process for each job, all at the same time, and adds up what they counted.
func (s *stage) perform(ctx context.Context, jobs []job) (counts, time.Duration, error) {
	c := newCrew(ctx, s.options.database.ConnString())
	defer c.disband()

	workers := make([]*worker, 0, len(jobs))
	for i, j := range jobs {
		w, err := c.start(i+1, j)
		if err != nil {
			return counts{}, 0, err
		}
		workers = append(workers, w)
	}
	for range workers {
		if _, err := c.await(eventReady); err != nil {
			return counts{}, 0, err
		}
	}
	start := time.Now()
	for _, w := range workers {
		if err := w.goAhead(); err != nil {
			return counts{}, 0, err
		}
	}
	total, err := s.collect(c, len(workers), start, jobs[0].Duration)
	return total, time.Since(start), err
}

// collect adds up what the workers report until all are done.
func (s *stage) collect(c *crew, workers int, start time.Time, length time.Duration) (counts, error) {
	var total counts
	for workers > 0 {
		ev, err := c.next()
		if err != nil {
			return counts{}, err
		}
		switch ev.Event {
		case eventProgress:
		case eventDone:
			workers--
			ev.worker.over = true
		default:
			return counts{}, ev.surprise(eventDone)
		}
		total.add(ev.counts)
		s.progress.update(time.Since(start).Seconds()/length.Seconds(), formatCount(len(total.Mutations))+" mutations")
	}
	return total, nil
}

// lostUpdates compares the updates that succeeded with those that the row shows. An update that ended
// in an error may have been done all the same, so after errors a surplus says nothing.
func lostUpdates(succeeded, shown, errors int) int {
	if shown > succeeded && errors > 0 {
		return 0
	}
	return succeeded - shown
}
