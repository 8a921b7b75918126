package command

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/pulse"
	"github.com/pgbaton/pgbaton/internal/cli"
)

const (
	connectTimeout = 10 * time.Second
	closeTimeout   = 5 * time.Second
	defaultTTL     = 15 * time.Second
)

// database reads which database is meant.
func (a *app) database() (*pgxpool.Config, error) {
	config, err := cli.Database(a.databaseURL, a.std.Getenv)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, connectTimeout)
	config.MinConns, config.MinIdleConns = 0, 0
	return config, nil
}

// connect opens a connection for statements of the command's own.
func (a *app) connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := a.database()
	if err != nil {
		return nil, err
	}
	cfg := config.ConnConfig
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // which poolers can take
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "pgbaton"
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, cli.Explain(err)
	}
	return conn, nil
}

// hangUp ends a connection, also when ctx has ended.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// client is a client of the library whose connections are watched.
type client struct {
	*pgbaton.Client

	pool  *pgxpool.Pool
	pulse *pulse.Monitor
	ttl   time.Duration
	name  string
}

// open opens a client.
func (a *app) open(ctx context.Context) (*client, error) {
	config, err := a.database()
	if err != nil {
		return nil, err
	}
	c := &client{pulse: new(pulse.Monitor), ttl: a.ttl, name: cmp.Or(a.name, ownName())}
	config.ConnConfig.DialFunc = c.pulse.Watch(config.ConnConfig.DialFunc)
	if c.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	c.Client, err = pgbaton.New(ctx, c.pool, &pgbaton.Config{
		TTL: c.ttl, Name: c.name, SessionPooler: a.sessionPooler, Logger: slog.New(a.logHandler()),
	})
	if err != nil {
		c.pool.Close()
		return nil, cli.Explain(err)
	}
	return c, nil
}

// close ends the client, also when ctx has ended.
func (c *client) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ttl)
	defer cancel()
	defer c.pool.Close()
	return c.Close(ctx)
}

// lifeShare is the part of its TTL that a command may live after the last sign of its server. The client writes every third of its TTL,
// so the command is dead five sixths of the TTL after the last message that the server has answered: before the grant is distrusted at
// nine tenths, and before the server gives the key to others at the whole.
const lifeShare = 2

// messages is the least number of messages that the client writes in a TTL.
const messages = 3

// life returns until when a command may live, by what is known now: from when the server owes an answer, or would owe one if this process
// had not stood still.
func (c *client) life() time.Time {
	since := c.pulse.Silent()
	if since.IsZero() {
		since = time.Now()
		if due := c.pulse.Answered().Add(c.ttl / messages); !c.pulse.Answered().IsZero() && due.Before(since) {
			since = due
		}
	}
	return since.Add(c.ttl / lifeShare)
}

// logHandler has the library's log on standard error, warnings only unless more is wanted.
func (a *app) logHandler() slog.Handler {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelInfo
	}
	return slog.NewTextHandler(redacting{a.std.Err}, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, attr slog.Attr) slog.Attr {
			if attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		},
	})
}
