package registry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Request is an operator's request to give something back.
type Request struct {
	ID     int64
	Holder int64
	Kind   Kind
	Name   string
	Key    advisory.Key
	Token  int64  // of the grant; 0 for whatever the holder has of the key
	Said   string // by whom, and why
}

// Outcomes of a request.
const (
	Freed        = "freed"
	Gone         = "gone"
	SessionEnded = "session ended"
	Lapses       = "lapses"
)

// FreePrefix begins a notification that there may be a request; the id of the holder follows. The rows decide: every role can notify.
const FreePrefix = "free/"

var (
	stmtRequest = pipeline.Statement{Name: "pgbaton_request_free", SQL: "SELECT pgbaton.request_free($1, $2, $3, $4, $5, $6, $7, $8, $9)"}
	stmtSettle  = pipeline.Statement{Name: "pgbaton_settle_free", SQL: "SELECT pgbaton.settle_free($1, $2, $3)"}
	stmtLook    = pipeline.Statement{Name: "pgbaton_look_free", SQL: "SELECT id, holder, kind, name, key, pair, token, said FROM pgbaton.look_free($1)"}
	stmtAnswer  = pipeline.Statement{Name: "pgbaton_answer_free", SQL: "SELECT pgbaton.answer_free($1, $2)"}
)

// RequestFree asks a holder, and returns the id of the request, of which there is one, whatever answers are lost.
func RequestFree(ctx context.Context, session Session, r Request, client, reason string) (int64, error) {
	number := rand.Int64() //nolint:gosec // only has to be unlike others
	answer, err := session.Query(ctx, &stmtRequest, pgtext.Int(number), pgtext.Int(r.Holder), []byte(client), []byte(r.Kind), []byte(r.Name), pgtext.Int(r.Key.ID),
		pgtext.Bool(r.Key.Pair), pgtext.Int(r.Token), []byte(reason))
	if err != nil {
		return 0, err
	}
	if len(answer) != 1 || len(answer[0]) != 1 {
		return 0, pgtext.ErrAnswer
	}
	return strconv.ParseInt(string(answer[0][0]), 10, 64)
}

// SettleFree returns what became of a request; "" if the holder has not answered. With giveUp the request is withdrawn, or the session ended.
func SettleFree(ctx context.Context, session Session, id int64, giveUp, endSession bool) (string, error) {
	answer, err := session.Query(ctx, &stmtSettle, pgtext.Int(id), pgtext.Bool(giveUp), pgtext.Bool(endSession))
	if err != nil {
		return "", err
	}
	if len(answer) != 1 || len(answer[0]) != 1 {
		return "", pgtext.ErrAnswer
	}
	return string(answer[0][0]), nil
}

// AnswererConfig is what an answerer needs.
type AnswererConfig struct {
	Session Session
	Holders func() []int64                // the ids under which the client holds something
	Room    func() bool                   // reports whether there is a connection to look by
	Free    func(Request) bool            // gives back what is asked for; false if the client does not have it
	Report  func(event string, err error) // for the log
}

// Answerer gives back what operators ask for. It has a goroutine while there may be something.
type Answerer struct {
	cfg AnswererConfig

	mu    sync.Mutex
	named map[int64]bool // holders for whom there may be requests
	all   bool           // there may be some for any

	answers map[int64]bool // by request: whether it was freed, until the server has taken that; of the goroutine

	asked   chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutine
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// NewAnswerer makes an answerer, which works until Close.
func NewAnswerer(cfg AnswererConfig) *Answerer {
	a := &Answerer{cfg: cfg, named: map[int64]bool{}, answers: map[int64]bool{}, asked: make(chan struct{}, 1)}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.workers.Go(a.run)
	return a
}

// Notified takes a notification. It does not wait.
func (a *Answerer) Notified(payload string) {
	text, ok := strings.CutPrefix(payload, FreePrefix)
	id, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.named) < mostNamed {
		a.named[id] = true
	} else {
		a.all = true // a flood, perhaps of what others have made up
	}
	chans.Signal(a.asked)
}

// Look has the answerer look for requests to all that the client holds, if there is a connection for that. It is for a client that hears no notifications, or
// has just begun to. It does not wait.
func (a *Answerer) Look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = true
	chans.Signal(a.asked)
}

// mostNamed bounds the holders that are kept until the next look.
const mostNamed = 1000

// restBetween is how long the answerer rests between looks, so that a flood of notifications is not one of statements.
const restBetween = 100 * time.Millisecond

func (a *Answerer) run() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-a.asked:
		}
		if err := a.answer(); err != nil && a.ctx.Err() == nil {
			a.cfg.Report("an operator's request to free something cannot be looked at or answered", err)
			if len(a.answers) > 0 {
				chans.Signal(a.asked) // what was freed is recorded once there is a session
			}
		}
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(restBetween):
		}
	}
}

// answer looks for requests, and does what they ask for.
func (a *Answerer) answer() error {
	a.mu.Lock()
	named, all := a.named, a.all
	a.named, a.all = map[int64]bool{}, false
	a.mu.Unlock()
	if len(named) == 0 && len(a.answers) == 0 && !a.cfg.Room() {
		return nil // nobody has said that there is one
	}
	ids := slices.DeleteFunc(a.cfg.Holders(), func(id int64) bool { return !named[id] && !all })
	if len(ids) == 0 && len(a.answers) == 0 {
		return nil // it is not about this client
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*patience)
	defer cancel()
	rows, err := a.cfg.Session.Query(ctx, &stmtLook, pgtext.Ints(ids))
	if err != nil {
		return fmt.Errorf("look for requests: %w", err)
	}
	for _, row := range rows {
		r, err := parseRequest(row)
		if err != nil {
			return err
		}
		if _, known := a.answers[r.ID]; !known {
			a.answers[r.ID] = a.cfg.Free(r)
		}
	}
	for id, freed := range a.answers {
		if _, err := a.cfg.Session.Query(ctx, &stmtAnswer, pgtext.Int(id), pgtext.Bool(freed)); err != nil {
			return fmt.Errorf("answer a request: %w", err)
		}
		delete(a.answers, id)
	}
	return nil
}

func parseRequest(row [][]byte) (Request, error) {
	const columns = 8
	if len(row) != columns {
		return Request{}, pgtext.ErrAnswer
	}
	var numbers [4]int64
	for i, column := range []int{0, 1, 4, 6} {
		n, err := strconv.ParseInt(string(row[column]), 10, 64)
		if err != nil {
			return Request{}, fmt.Errorf("%w: %w", pgtext.ErrAnswer, err)
		}
		numbers[i] = n
	}
	return Request{
		ID: numbers[0], Holder: numbers[1], Kind: Kind(row[2]), Name: string(row[3]),
		Key: advisory.Key{ID: numbers[2], Pair: string(row[5]) == "t"}, Token: numbers[3], Said: string(row[7]),
	}, nil
}

// Close ends the answerer.
func (a *Answerer) Close() {
	a.stop()
	a.workers.Wait()
}
