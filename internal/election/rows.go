package election

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// oldRow is a row to be cleared: its term is over.
type oldRow struct {
	name string
	term int64
	done chan struct{} // closed when it is cleared
}

// clearRow has the row of a term cleared, soon.
func (m *Manager) clearRow(t *Term) *oldRow {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.old == nil {
		t.old = &oldRow{t.contest.name, t.Hold.Token(), make(chan struct{})}
		m.oldRows = append(m.oldRows, t.old)
		chans.Signal(m.rows)
	}
	return t.old
}

// writeOn listens and keeps the rows, until there are neither candidates nor rows to be cleared.
func (m *Manager) writeOn() {
	defer m.cfg.Sidecar.Subscribe(freePrefix, m.heardFree)()
	defer m.cfg.Sidecar.Subscribe(resignPrefix, m.heardRequest)()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		m.mu.Lock()
		if len(m.contests)+len(m.oldRows) == 0 || m.ctx.Err() != nil {
			m.writing = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		m.write()
		select {
		case <-ticker.C:
		case <-m.rows:
		case <-m.stopped:
		}
	}
}

var (
	stmtKeep = &pipeline.Statement{
		Name: "pgbaton_keep_leaders", SQL: "SELECT pgbaton.keep_leaders($1, $2, $3, $4)",
	}
	stmtClear = &pipeline.Statement{
		Name: "pgbaton_strike_leaders", SQL: "SELECT pgbaton.strike_leaders($1, $2)",
	}
)

// write brings the rows up to date. A write that fails is done again the next time. It asks for the holder each time, also
// because that opens the session, which listens.
func (m *Manager) write() {
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	defer cancel()
	holder, err := m.cfg.Sidecar.Holder(ctx)
	if err != nil {
		return // a row whose holder is gone does not count
	}
	m.record(ctx, holder)
	m.clear(ctx)
}

// record writes the rows of terms that are new, or of all if the holder is another, and now and then looks at all to
// see whether one of them should end.
func (m *Manager) record(ctx context.Context, holder int64) {
	var names []string
	var numbers []int64
	terms := map[string]*Term{}
	now := time.Now()
	m.mu.Lock()
	all := now.Sub(m.polled) >= pollEvery
	if all {
		m.polled = now
	}
	for _, p := range m.contests {
		if t := p.term; t != nil && t.old == nil && (all || t.holder != holder) {
			names, numbers = append(names, p.name), append(numbers, t.Hold.Token())
			terms[p.name] = t
		}
	}
	m.mu.Unlock()
	if len(names) == 0 {
		return
	}
	rows, err := m.cfg.Sidecar.Query(ctx, stmtKeep, pgtext.Texts(names), pgtext.Ints(numbers), pgtext.Int(holder), []byte(m.cfg.Name))
	if m.noteFailure(err); err != nil {
		return
	}
	m.mu.Lock()
	for _, t := range terms {
		t.holder = holder
	}
	m.mu.Unlock()
	for _, row := range rows {
		if t := terms[string(row[0])]; t != nil {
			t.askToEnd(lockerr.Resigned)
		}
	}
}

// clear clears the rows of terms that are over.
func (m *Manager) clear(ctx context.Context) {
	m.mu.Lock()
	old := m.oldRows
	m.mu.Unlock()
	if len(old) == 0 {
		return
	}
	var names []string
	var numbers []int64
	for _, s := range old {
		names, numbers = append(names, s.name), append(numbers, s.term)
	}
	_, err := m.cfg.Sidecar.Query(ctx, stmtClear, pgtext.Texts(names), pgtext.Ints(numbers))
	if m.noteFailure(err); err != nil {
		return
	}
	m.mu.Lock()
	m.oldRows = m.oldRows[len(old):] // only added to meanwhile
	m.mu.Unlock()
	for _, s := range old {
		close(s.done)
	}
}

// noteFailure reports the first of several failures in a row.
func (m *Manager) noteFailure(err error) {
	m.mu.Lock()
	first := err != nil && !m.failed && m.ctx.Err() == nil
	m.failed = err != nil
	m.mu.Unlock()
	if first {
		m.cfg.Report("the rows that say who leads cannot be written; the leaders lead nevertheless", err)
	}
}

// Leader is the leader of a name.
type Leader struct {
	Holder string
	Term   int64
	Since  time.Time
}

var errNobody = fmt.Errorf("%w: nobody leads", lockerr.NotFound)

var stmtLeader = &pipeline.Statement{
	Name: "pgbaton_leader_of",
	SQL:  "SELECT holder_name, term, (extract(epoch FROM since) * 1000000)::bigint FROM pgbaton.leader_of($1)",
}

// Leader returns the leader of a name, as its row says. NotFound if there is none.
func (m *Manager) Leader(ctx context.Context, name string) (Leader, error) {
	rows, err := m.cfg.Sidecar.Query(ctx, stmtLeader, []byte(name))
	switch {
	case err != nil:
		return Leader{}, err
	case len(rows) == 0:
		return Leader{}, errNobody
	case len(rows[0]) != 3: //nolint:mnd // as in the statement
		return Leader{}, pgtext.ErrAnswer
	}
	term, errTerm := strconv.ParseInt(string(rows[0][1]), 10, 64)
	since, errSince := strconv.ParseInt(string(rows[0][2]), 10, 64)
	if err := errors.Join(errTerm, errSince); err != nil {
		return Leader{}, fmt.Errorf("%w: %w", pgtext.ErrAnswer, err)
	}
	return Leader{Holder: string(rows[0][0]), Term: term, Since: time.UnixMicro(since)}, nil
}

var stmtRequest = &pipeline.Statement{
	Name: "pgbaton_request_resign", SQL: "SELECT pgbaton.request_resign($1)",
}

// RequestResign asks the leader of a name to resign. NotFound if there is none.
func (m *Manager) RequestResign(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t := m.termOf(name); t != nil { // its row may not be written yet
		t.askToEnd(lockerr.Resigned)
		return nil
	}
	rows, err := m.cfg.Sidecar.Query(ctx, stmtRequest, []byte(name))
	switch {
	case err != nil:
		return err
	case len(rows) != 1 || len(rows[0]) != 1:
		return pgtext.ErrAnswer
	case rows[0][0] == nil:
		return errNobody
	}
	m.cfg.Sidecar.Notify(resignPrefix + string(rows[0][0]) + "/" + name)
	return nil
}
