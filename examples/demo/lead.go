package demo

import (
	"context"
	"errors"
	"time"

	"github.com/pgbaton/pgbaton"
)

const jobLead = "lead"

const (
	candidates  = 3
	leaderKills = 4
	leaderName  = "pgbaton_demo/leader"

	// ledFor is how long a leader leads before it is killed: nobody else may lead meanwhile.
	ledFor = 300 * time.Millisecond

	// leadWithin is what the next leader must keep to.
	leadWithin = 1500 * time.Millisecond
)

// lead is the worker: it is a candidate, and in each term gives Ada one raise and leads until it is killed or dismissed.
func (b *kit) lead(ctx context.Context) error {
	if err := b.say(message{Event: eventWaiting}); err != nil {
		return err
	}
	err := b.client.Lead(ctx, leaderName, func(ctx context.Context, lock *pgbaton.Lock) error {
		salary, err := readSalary(ctx, b.pool, ada)
		if err != nil {
			return err
		}
		if _, err := b.pool.Exec(ctx, sqlWriteSalary, ada, salary+1); err != nil {
			return err
		}
		if err := b.say(message{Event: eventGranted, Term: int64(lock.Token())}); err != nil {
			return err
		}
		<-ctx.Done()
		if cause := context.Cause(ctx); errors.Is(cause, pgbaton.ErrLost) {
			return cause
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // dismissed
	}
	return err
}

// dynasty is what a number of killed leaders left.
type dynasty struct {
	terms   int             // each gave one raise
	waits   []time.Duration // from each kill to the next leader
	early   int             // leaders while another one led
	fallen  int             // terms that were not greater than the one before
	final   int64           // salary at the end
	elapsed time.Duration
}

func killLeaders(ctx context.Context, s *stage) (outcome, error) {
	if err := resetSalaries(ctx, s.pool); err != nil {
		return outcome{}, err
	}
	result, err := s.reign(ctx)
	if err != nil {
		return outcome{}, err
	}
	if result.final, err = readSalary(ctx, s.pool, ada); err != nil {
		return outcome{}, err
	}
	return judgeDynasty(result), nil
}

func judgeDynasty(got dynasty) outcome {
	r := row{
		title:     titleLeaderKilled,
		mutations: got.terms,
		lost:      lostUpdates(got.terms, int(got.final-firstSalary), 0),
		times:     summarize(got.waits),
		elapsed:   got.elapsed,
	}
	o := outcome{rows: []row{r}}
	if got.early > 0 {
		o.fail("%d workers led while another one did. That must never happen: please report it.", got.early)
	}
	if got.fallen > 0 {
		o.fail("%d terms were not greater than the one before. That must never happen: please report it.", got.fallen)
	}
	if r.lost != 0 {
		o.fail("The leaders gave %d raises, and the last salary is %d, not %d.",
			got.terms, got.final, firstSalary+int64(got.terms))
	}
	if r.times.longest > leadWithin {
		o.fail("After a kill there was no leader for up to %s; at most %s was expected.",
			formatTime(r.times.longest), formatTime(leadWithin))
	}
	if len(o.failures) == 0 {
		o.see("Leaders killed by SIGKILL, one of %d candidates of client.Lead: %d. Another one led %s after the kill on "+
			"average, %s at most, each in a greater term.",
			candidates, len(got.waits), formatTime(r.times.average), formatTime(r.times.longest))
	}
	return o
}

// reign lets workers be candidates, and kills the leader a few times, each time with another worker in its place.
func (s *stage) reign(ctx context.Context) (dynasty, error) {
	c := newCrew(ctx, s.options.database.ConnString())
	defer c.disband()
	var (
		result dynasty
		start  = time.Now()
	)
	if _, err := c.startWaiting(1, job{Kind: jobLead}); err != nil {
		return result, err
	}
	leader, err := c.await(eventGranted)
	if err != nil {
		return result, err
	}
	result.terms++
	for number := 2; number <= candidates; number++ {
		if _, err := c.startWaiting(number, job{Kind: jobLead}); err != nil {
			return result, err
		}
	}
	for kills := range leaderKills {
		if leader, err = c.dethrone(leader, &result); err != nil {
			return result, err
		}
		if kills+1 < leaderKills {
			if _, err := c.startWaiting(candidates+1+kills, job{Kind: jobLead}); err != nil {
				return result, err
			}
		}
		s.progress.update(float64(kills+1)/leaderKills, formatCount(len(result.waits))+" killed")
	}
	result.elapsed = time.Since(start)
	return result, nil
}

// dethrone kills the leader and returns when there is another one.
func (c *crew) dethrone(leader event, result *dynasty) (event, error) {
	switch tooEarly, err := c.nextWithin(ledFor); {
	case err == nil && tooEarly.Event == eventGranted:
		result.early++
		result.terms++
		return tooEarly, leader.worker.kill()
	case err == nil:
		return event{}, tooEarly.surprise(eventGranted)
	case !errors.Is(err, errSilence):
		return event{}, err
	}
	killed := time.Now()
	if err := leader.worker.kill(); err != nil {
		return event{}, err
	}
	next, err := c.await(eventGranted)
	if err != nil {
		return event{}, err
	}
	result.terms++
	result.waits = append(result.waits, next.at.Sub(killed))
	if next.Term <= leader.Term {
		result.fallen++
	}
	return next, nil
}
