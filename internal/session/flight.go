package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// Command is a statement of a flight: several that are sent together and answered together, in one round trip, each in a
// transaction of its own, so that one that fails does not cost the others.
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

// fly sends commands together and returns an answer for each. An error is one of the connection. What had to give way to another
// transaction is sent again, as often as [patience] says: some engines answer so to every third statement.
func fly(ctx context.Context, conn *pgconn.PgConn, commands []Command) ([]answer, error) {
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
	for i := range commands {
		a := &answers[i]
		for done := false; !done; {
			results, err := p.GetResults()
			switch results := results.(type) {
			case *pgconn.ResultReader:
				read := results.Read()
				a.rows, a.err = read.Rows, read.Err
				if broken(conn, a.err) {
					return nil, fmt.Errorf("%s: %w", commands[i].What, errors.Join(a.err, p.Close()))
				}
			case *pgconn.PipelineSync:
				done = true
			default:
				if err == nil {
					err = errors.New("the server's answer does not fit the statement sent")
				}
				a.err = err
				if broken(conn, err) {
					return nil, fmt.Errorf("%s: %w", commands[i].What, errors.Join(err, p.Close()))
				}
			}
		}
	}
	return answers, p.Close()
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
func flyOn(ctx context.Context, conn *pgconn.PgConn, commands []Command) (answers []answer, err error) {
	_ = Insist(func() error {
		if answers, err = fly(ctx, conn, commands); err != nil {
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
