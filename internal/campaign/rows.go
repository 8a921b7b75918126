package campaign

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// strike is a row to be cleared: its term is over.
type strike struct {
	name string
	term int64
	done chan struct{} // closed when it is cleared
}

// strike has the row of a term cleared, soon.
func (o *Office) strike(t *Term) *strike {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t.stricken == nil {
		t.stricken = &strike{t.post.name, t.Hold.Token(), make(chan struct{})}
		o.strikes = append(o.strikes, t.stricken)
		chans.Signal(o.rows)
	}
	return t.stricken
}

// keep is the clerk: it listens and keeps the rows, until there are neither campaigns nor rows to be cleared.
func (o *Office) keep() {
	defer o.cfg.Ledger.Subscribe(freePrefix, o.heardFree)()
	defer o.cfg.Ledger.Subscribe(resignPrefix, o.heardRequest)()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		o.mu.Lock()
		if len(o.posts)+len(o.strikes) == 0 || o.ctx.Err() != nil {
			o.keeping = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		o.write()
		select {
		case <-ticker.C:
		case <-o.rows:
		case <-o.stopped:
		}
	}
}

var (
	stmtKeep = &pipeline.Statement{
		Name: "pgbaton_keep_leaders", SQL: "SELECT pgbaton.keep_leaders($1, $2, $3, $4)",
	}
	stmtStrike = &pipeline.Statement{
		Name: "pgbaton_strike_leaders", SQL: "SELECT pgbaton.strike_leaders($1, $2)",
	}
)

// write brings the rows up to date. What fails is done again the next time. It asks for the holder each time, also
// because that opens the session, which listens.
func (o *Office) write() {
	ctx, cancel := context.WithTimeout(o.ctx, patience)
	defer cancel()
	holder, err := o.cfg.Ledger.Holder(ctx)
	if err != nil {
		return // a row whose holder is gone does not count
	}
	o.record(ctx, holder)
	o.clear(ctx)
}

// record writes the rows of terms that are new, or of all if the holder is another, and now and then looks at all to
// see whether one of them should end.
func (o *Office) record(ctx context.Context, holder int64) {
	var names []string
	var numbers []int64
	terms := map[string]*Term{}
	now := time.Now()
	o.mu.Lock()
	all := now.Sub(o.polled) >= pollEvery
	if all {
		o.polled = now
	}
	for _, p := range o.posts {
		if t := p.term; t != nil && t.stricken == nil && (all || t.holder != holder) {
			names, numbers = append(names, p.name), append(numbers, t.Hold.Token())
			terms[p.name] = t
		}
	}
	o.mu.Unlock()
	if len(names) == 0 {
		return
	}
	rows, err := o.cfg.Ledger.Query(ctx, stmtKeep, texts(names), bigints(numbers), decimal(holder), []byte(o.cfg.Name))
	if o.told(err); err != nil {
		return
	}
	o.mu.Lock()
	for _, t := range terms {
		t.holder = holder
	}
	o.mu.Unlock()
	for _, row := range rows {
		if t := terms[string(row[0])]; t != nil {
			t.ask(lockerr.Resigned)
		}
	}
}

// clear clears the rows of terms that are over.
func (o *Office) clear(ctx context.Context) {
	o.mu.Lock()
	strikes := o.strikes
	o.mu.Unlock()
	if len(strikes) == 0 {
		return
	}
	var names []string
	var numbers []int64
	for _, s := range strikes {
		names, numbers = append(names, s.name), append(numbers, s.term)
	}
	_, err := o.cfg.Ledger.Query(ctx, stmtStrike, texts(names), bigints(numbers))
	if o.told(err); err != nil {
		return
	}
	o.mu.Lock()
	o.strikes = o.strikes[len(strikes):] // only added to meanwhile
	o.mu.Unlock()
	for _, s := range strikes {
		close(s.done)
	}
}

// told reports the first of several failures in a row.
func (o *Office) told(err error) {
	o.mu.Lock()
	first := err != nil && !o.failed && o.ctx.Err() == nil
	o.failed = err != nil
	o.mu.Unlock()
	if first {
		o.cfg.Report("the rows that say who leads cannot be written; the leaders lead nevertheless", err)
	}
}

// Leader is who leads a name.
type Leader struct {
	Holder string
	Term   int64
	Since  time.Time
}

var (
	errAnswer = errors.New("the server's answer is not what the schema promises")
	errNobody = fmt.Errorf("%w: nobody leads", lockerr.NotFound)
)

var stmtLeader = &pipeline.Statement{
	Name: "pgbaton_leader_of",
	SQL:  "SELECT holder_name, term, (extract(epoch FROM since) * 1000000)::bigint FROM pgbaton.leader_of($1)",
}

// Leader says who leads a name, as its row does. NotFound if nobody does.
func (o *Office) Leader(ctx context.Context, name string) (Leader, error) {
	rows, err := o.cfg.Ledger.Query(ctx, stmtLeader, []byte(name))
	switch {
	case err != nil:
		return Leader{}, err
	case len(rows) == 0:
		return Leader{}, errNobody
	case len(rows[0]) != 3: //nolint:mnd // as in the statement
		return Leader{}, errAnswer
	}
	term, errTerm := strconv.ParseInt(string(rows[0][1]), 10, 64)
	since, errSince := strconv.ParseInt(string(rows[0][2]), 10, 64)
	if err := errors.Join(errTerm, errSince); err != nil {
		return Leader{}, fmt.Errorf("%w: %w", errAnswer, err)
	}
	return Leader{Holder: string(rows[0][0]), Term: term, Since: time.UnixMicro(since)}, nil
}

var stmtRequest = &pipeline.Statement{
	Name: "pgbaton_request_resign", SQL: "SELECT pgbaton.request_resign($1)",
}

// RequestResign asks whoever leads a name to resign. NotFound if nobody does.
func (o *Office) RequestResign(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t := o.lead(name); t != nil { // its row may not be written yet
		t.ask(lockerr.Resigned)
		return nil
	}
	rows, err := o.cfg.Ledger.Query(ctx, stmtRequest, []byte(name))
	switch {
	case err != nil:
		return err
	case len(rows) != 1 || len(rows[0]) != 1:
		return errAnswer
	case rows[0][0] == nil:
		return errNobody
	}
	o.cfg.Ledger.Notify(resignPrefix + string(rows[0][0]) + "/" + name)
	return nil
}

func decimal(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

// texts is a text[] as PostgreSQL reads it.
func texts(all []string) []byte {
	quoted := make([]string, len(all))
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for i, s := range all {
		quoted[i] = `"` + escape.Replace(s) + `"`
	}
	return []byte("{" + strings.Join(quoted, ",") + "}")
}

// bigints is a bigint[] as PostgreSQL reads it.
func bigints(all []int64) []byte {
	numbers := make([]string, len(all))
	for i, n := range all {
		numbers[i] = strconv.FormatInt(n, 10)
	}
	return []byte("{" + strings.Join(numbers, ",") + "}")
}
