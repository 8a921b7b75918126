package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// table is a session whose table has rows by id.
type table struct {
	rows       map[int64]string
	last       int64
	statements int
	ids        string
	unlisted   string
	failure    error // of the next statement, which runs nevertheless
	session    int64
	sweeps     int
}

var errCut = errors.New("the connection was cut")

func (s *table) Known() int64 { return s.session }

func (s *table) Query(_ context.Context, _ *pipeline.Statement, params ...[]byte) ([][][]byte, error) {
	s.statements++
	if string(params[8]) == "true" {
		s.sweeps++
	}
	if string(params[7]) == "true" {
		clear(s.rows)
	}
	gone, err := pgtext.ParseInts[int64](params[9])
	if err != nil {
		return nil, err
	}
	for _, id := range gone {
		if _, there := s.rows[id]; !there {
			return nil, fmt.Errorf("there is no row %d", id)
		}
		delete(s.rows, id)
	}
	s.ids, s.unlisted = string(params[2]), string(params[6])
	var ids []int64
	for i, name := range words(params[13]) {
		s.last++
		s.rows[s.last] = name + " " + words(params[11])[i]
		ids = append(ids, s.last)
	}
	if err := s.failure; err != nil {
		s.failure = nil
		return nil, err
	}
	return [][][]byte{{pgtext.Ints(ids)}}, nil
}

func words(array []byte) []string {
	inside := strings.Trim(string(array), "{}")
	if inside == "" {
		return nil
	}
	return strings.Split(strings.ReplaceAll(inside, `"`, ""), ",")
}

// desk is a registry that is walked by hand.
type desk struct {
	*Registry

	table *table
	now   time.Time
	here  []Entry
	room  bool
	// crowded means that there is no room, but waiting sessions that would make some.
	crowded bool
	said    []error
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{table: &table{rows: map[int64]string{}, session: 1}, now: time.Now(), room: true}
	d.Registry = New(Config{
		Session: d.table, Name: "me", Walk: func(visit func(Entry)) {
			for _, e := range d.here {
				visit(e)
			}
		},
		Room: func(pressing bool) bool { return d.room || pressing && d.crowded }, Listen: func() {}, Report: func(_ string, err error) { d.said = append(d.said, err) },
	})
	d.stop() // the walks of its own
	<-d.over
	d.ctx, d.stop = context.WithCancel(t.Context())
	return d
}

// tick is a walk, a second after the one before.
func (d *desk) tick() {
	d.now = d.now.Add(every)
	d.step(d.now)
}

func (d *desk) published() []string {
	var all []string
	for _, row := range d.table.rows {
		all = append(all, row)
	}
	slices.Sort(all)
	return all
}

func held(name string) Entry {
	return Entry{Grant: new(int), Kind: Lock, Name: name, Key: advisory.Key{ID: 1}, Permits: 1, Token: 7, Client: 11}
}

func TestRegistry(t *testing.T) {
	t.Parallel()

	t.Run("PublishesWhatIsThereInTwoWalks", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a"), held("b")}
		d.tick()
		require.Zero(t, d.table.statements)
		d.here = append(d.here[:1], held("c"))
		d.tick()
		require.Equal(t, []string{"a false"}, d.published())
		d.tick()
		require.Equal(t, []string{"a false", "c false"}, d.published())
		require.Equal(t, 2, d.table.statements)
		for range 10 {
			d.tick()
		}
		require.Equal(t, 2, d.table.statements, "nothing has changed")
		d.here = nil
		d.tick()
		require.Empty(t, d.published())
		require.Equal(t, "{}", d.table.ids, "nor is there a row of the client")
		d.tick()
		require.Equal(t, 3, d.table.statements)
	})
	t.Run("FollowsAWaiterThatIsGranted", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		e := held("a")
		e.Waits, e.Token = true, 0
		d.here = []Entry{e}
		d.tick()
		d.tick()
		require.Equal(t, []string{"a true"}, d.published())
		d.here[0].Waits = false
		d.tick()
		require.Empty(t, d.published())
		d.tick()
		require.Equal(t, []string{"a false"}, d.published())
		d.here[0].Client = 12 // held by another session, as after a move
		d.tick()
		d.tick()
		require.Equal(t, []string{"a false"}, d.published())
		require.Equal(t, "{12,1}", d.table.ids)
	})
	t.Run("WaitsForTheServerToKnowTheClient", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		e := held("a")
		e.Client = 0
		d.here = []Entry{e}
		d.tick()
		d.tick()
		require.Zero(t, d.table.statements)
	})
	t.Run("HasSoManyRowsAndCountsTheOthers", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		for i := range Most + 5 {
			d.here = append(d.here, held(strconv.Itoa(i)))
		}
		d.tick()
		d.tick()
		require.Len(t, d.table.rows, Most)
		require.Equal(t, "5", d.table.unlisted)
		d.here = d.here[10:]
		d.tick()
		require.Len(t, d.table.rows, Most-10)
		d.tick()
		require.Len(t, d.table.rows, Most-5)
		require.Equal(t, "0", d.table.unlisted)
	})
	t.Run("TakesNoConnectionFromOthers", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		a, b := held("a"), held("b")
		d.here = []Entry{a}
		d.tick()
		d.tick()
		d.room, d.here = false, []Entry{b}
		for range 5 {
			d.tick()
		}
		require.Equal(t, 1, d.table.statements)
		d.room = true
		d.tick()
		require.Equal(t, []string{"b false"}, d.published())
	})
	t.Run("TakesThePlaceOfAWaiterInTheEnd", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.room, d.crowded = false, true
		d.here = []Entry{held("a")}
		for range 1 + overdue {
			d.tick()
			require.Zero(t, d.table.statements)
		}
		d.tick()
		require.Equal(t, []string{"a false"}, d.published())
		d.here = append(d.here, held("b"))
		for range 1 + overdue {
			d.tick()
			require.Equal(t, 1, d.table.statements)
		}
		d.tick()
		require.Equal(t, []string{"a false", "b false"}, d.published())
	})
	t.Run("BeginsAnewWhenAnAnswerIsLost", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		d.table.failure = errCut
		d.tick()
		require.Equal(t, []string{"a false"}, d.published(), "of which the client knows nothing")
		d.here = append(d.here, held("b"))
		d.tick()
		d.tick()
		require.Equal(t, []string{"a false", "b false"}, d.published())
		require.Equal(t, []error{errCut}, d.causes())
		d.table.failure = errCut
		d.here = nil
		d.tick()
		d.tick()
		require.Empty(t, d.published())
	})
	t.Run("HasMorePatienceWithASlowServer", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		var limits []time.Duration
		var walks []int // between tries
		for range 12 {
			limits = append(limits, d.limit())
			d.table.failure = context.DeadlineExceeded
			last, tries := d.walk, d.table.statements
			for d.table.statements == tries {
				d.tick()
			}
			walks = append(walks, d.walk-last)
		}
		require.Equal(t, []time.Duration{patience, 2 * patience, 3 * patience}, limits[:3])
		require.Equal(t, mostPatience, limits[11])
		require.Equal(t, []int{1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10}, walks)
		require.Len(t, d.said, 1, "once")
		d.table.failure = nil
		for range mostWalks {
			d.tick()
		}
		require.Equal(t, []string{"a false"}, d.published())
		require.Equal(t, patience, d.limit())
	})
	t.Run("SaysSoWhenItsSessionIsAnother", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		d.tick()
		d.table.session = 0 // closed for want of use
		d.tick()
		require.Equal(t, 1, d.table.statements)
		d.table.session = 2
		d.tick()
		d.tick()
		require.Equal(t, 2, d.table.statements)
		require.Equal(t, []string{"a false"}, d.published())
	})
	t.Run("SweepsNowAndThen", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		for i := range 25 {
			d.here = append(d.here, held(strconv.Itoa(i)))
			d.tick()
		}
		require.Equal(t, 24, d.table.statements)
		require.Equal(t, 3, d.table.sweeps)
	})
	t.Run("SaysWhoHasWhatIsListedElsewhere", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		lease := func(client int64) Entry {
			e := held("a")
			e.Listed, e.Client = true, client
			return e
		}
		d.here = []Entry{lease(11)}
		d.tick()
		require.Zero(t, d.table.statements, "it may be short")
		for range 5 {
			d.tick()
		}
		require.Equal(t, 1, d.table.statements)
		require.Equal(t, "{11,1}", d.table.ids)
		require.Empty(t, d.published())
		d.here = nil
		d.tick()
		for range 5 { // others, that come and go
			d.here = []Entry{lease(11), lease(11)}
			d.tick()
			d.tick()
		}
		require.Equal(t, 1, d.table.statements, "once")
		d.here = []Entry{held("b"), d.here[0]}
		d.tick()
		d.tick()
		d.here = d.here[1:]
		d.tick()
		require.Equal(t, 3, d.table.statements, "a row that came and went")
		require.Equal(t, "{11,1}", d.table.ids, "and did not take the client's with it")
		d.here = []Entry{lease(12)} // another session has taken the leases over
		d.tick()
		d.tick()
		require.Equal(t, 4, d.table.statements)
		require.Equal(t, "{12,1}", d.table.ids)
		d.Stop(t.Context())
		require.Equal(t, 5, d.table.statements)
		require.Equal(t, "{}", d.table.ids)
	})
	t.Run("SaysAgainWhoHasItWhenAnAnswerIsLost", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.here[0].Listed = true
		d.tick()
		d.table.failure = errCut
		d.tick()
		d.tick()
		d.tick()
		d.tick()
		require.Equal(t, 2, d.table.statements)
		require.Equal(t, []error{errCut}, d.causes())
	})
	t.Run("LeavesNothing", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		d.tick()
		d.Stop(t.Context())
		require.Empty(t, d.published())
		d.Close(t.Context(), true)
		require.Equal(t, 2, d.table.statements)
	})
	t.Run("LeavesNothingWithoutASession", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		d.tick()
		d.table.session = 0 // it was closed for want of use
		d.Stop(t.Context())
		d.Close(t.Context(), true)
		require.Empty(t, d.published())
	})
	t.Run("AsksADeadServerForNothing", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		d.here = []Entry{held("a")}
		d.tick()
		d.tick()
		d.table.session = 0
		d.Stop(t.Context())
		d.Close(t.Context(), false)
		require.Equal(t, 1, d.table.statements)
	})
}

// causes are the errors that were reported, without what is around them.
func (d *desk) causes() []error {
	var causes []error
	for _, err := range d.said {
		causes = append(causes, errors.Unwrap(err))
	}
	return causes
}

// Most bounds the rows; a statement that takes a thousand of them fits into patience, which the integration tests see.
func TestRegistry_IDs(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for i := range 3 * mostIDs {
		e := held(strconv.Itoa(i))
		e.Client = int64(1 + i)
		d.here = append(d.here, e)
	}
	d.tick()
	d.tick()
	require.Len(t, words([]byte(d.table.ids)), mostIDs)
}
