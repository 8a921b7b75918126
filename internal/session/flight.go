package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// Command is a statement of a flight: several that are sent together and answered together, in one round trip, each in a
// transaction of its own, so that one that fails does not cost the others. Through a pooler they are one transaction if none fails, see
// [ErrForeign].
type Command struct {
	What   string // for errors: "become a holder"
	SQL    string
	Params [][]byte // as text
}

// answer is what a command returned, as text, or why it failed.
type answer struct {
	rows [][][]byte
	err  error
}

// only returns the only row, with "" for NULL.
func (a answer) only() ([]string, error) {
	if a.err != nil {
		return nil, a.err
	}
	if len(a.rows) != 1 {
		return nil, errNotOneRow
	}
	return texts(a.rows[0]), nil
}

var errNotOneRow = errors.New("the server did not answer with one row")

func texts(values [][]byte) []string {
	row := make([]string, len(values))
	for i, value := range values {
		row[i] = string(value)
	}
	return row
}

func (s *Session) fly(ctx context.Context, commands []Command) ([]answer, error) {
	return fly(ctx, s.PgConn(), s.Relayed, commands)
}

// fly sends commands together and returns an answer for each. An error is one of the connection. What had to give way to another
// transaction is sent again, as often as [patience] says: some engines answer so to every third statement.
func fly(ctx context.Context, conn *pgconn.PgConn, relayed bool, commands []Command) ([]answer, error) {
	send := send
	if relayed {
		send = sendRelayed
	}
	answers, err := send(ctx, conn, commands)
	for attempt := 1; err == nil && attempt < patience; attempt++ {
		var places []int
		var again []Command
		for i, c := range commands {
			if pgerr.Retryable(answers[i].err) {
				places, again = append(places, i), append(again, c)
			}
		}
		if len(again) == 0 {
			break
		}
		var better []answer
		better, err = send(ctx, conn, again)
		for i, a := range better {
			answers[places[i]] = a
		}
	}
	return answers, err
}

// send is fly without patience.
func send(ctx context.Context, conn *pgconn.PgConn, commands []Command) ([]answer, error) {
	p := conn.StartPipeline(ctx)
	for _, c := range commands {
		p.SendQueryParams(c.SQL, c.Params, nil, nil, nil)
		p.SendPipelineSync()
	}
	if err := p.Flush(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	answers := make([]answer, len(commands))
	for i, c := range commands {
		got, err := readTransaction(conn, p, c.What)
		if err != nil {
			return nil, err
		}
		if len(got) > 0 {
			answers[i] = got[len(got)-1]
		}
	}
	return answers, p.Close()
}

// readTransaction reads the answers up to the end of the next transaction. After a statement that failed there is none, and that the
// commit failed comes last.
func readTransaction(conn *pgconn.PgConn, p *pgconn.Pipeline, what string) ([]answer, error) {
	var answers []answer
	for {
		var a answer
		results, err := p.GetResults()
		switch results := results.(type) {
		case *pgconn.ResultReader:
			read := results.Read()
			a = answer{read.Rows, read.Err}
		case *pgconn.PipelineSync:
			return answers, nil
		default:
			if a.err = err; err == nil {
				a.err = errors.New("the server's answer does not fit the statement sent")
			}
		}
		if broken(conn, a.err) {
			return nil, fmt.Errorf("%s: %w", what, errors.Join(a.err, p.Close()))
		}
		answers = append(answers, a)
	}
}

// sendRelayed is send through a pooler: all in one transaction, or, if one fails, one after the other.
func sendRelayed(ctx context.Context, conn *pgconn.PgConn, commands []Command) ([]answer, error) {
	answers, err := sendTransaction(ctx, conn, commands)
	if err != nil || answers[len(answers)-1].err == nil {
		return answers, err
	}
	answers = make([]answer, 0, len(commands))
	for i := range commands {
		one, err := sendTransaction(ctx, conn, commands[i:i+1])
		if err != nil {
			return nil, err
		}
		answers = append(answers, one[len(one)-1])
	}
	return answers, nil
}

// sendTransaction sends commands, at least one, as one transaction, and makes sure that the answer is to them. That the transaction has
// failed comes last, in place of what it leaves unanswered, or after all answers.
func sendTransaction(ctx context.Context, conn *pgconn.PgConn, commands []Command) ([]answer, error) {
	number := Number()
	p := conn.StartPipeline(ctx)
	for _, c := range append([]Command{numbered(number)}, commands...) {
		p.SendQueryParams(c.SQL, c.Params, nil, nil, nil)
	}
	p.SendPipelineSync()
	if err := p.Flush(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	what := commands[0].What
	got, err := readTransaction(conn, p, what)
	if err == nil {
		err = p.Close()
	}
	switch {
	case err != nil:
		return nil, err
	case len(got) == 1 && pgerr.Passing(got[0].err): // if it is somebody else's, the next answer shows it
		return got, nil
	case len(got) < 2 || !echoed(got[0].rows, number) || got[len(got)-1].err == nil && len(got) != len(commands)+1:
		return nil, fmt.Errorf("%s: %w", what, ErrForeign)
	}
	return got[1:], nil
}

// patience is how often what the role's statement_timeout ended is sent again. It can be so short that even the statement
// that lifts it is caught by a slow moment. PostgreSQL may tell a timeout that comes as its statement ends as a cancel by the user.
const patience = 20

// Insist sends what lifts the role's statement_timeout, and sends it again where that has ended it.
func Insist(send func() error) error {
	for attempt := 1; ; attempt++ {
		if err := send(); pgerr.Code(err) != pgerr.QueryCanceled || attempt == patience {
			return err
		}
	}
}

// flyOn is fly for commands of which the first lifts the role's statement_timeout.
func flyOn(ctx context.Context, conn *pgconn.PgConn, relayed bool, commands []Command) (answers []answer, err error) {
	_ = Insist(func() error {
		if answers, err = fly(ctx, conn, relayed, commands); err != nil {
			return nil
		}
		return answers[0].err
	})
	return answers, err
}

// broken reports whether an error is one of the connection, and not the server's word on a statement.
func broken(conn *pgconn.PgConn, err error) bool {
	var pgErr *pgconn.PgError
	return conn.IsClosed() || err != nil && (!errors.As(err, &pgErr) || pgErr.Severity == "FATAL")
}
