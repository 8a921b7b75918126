package session

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

var errMuted = errors.New("no cancel request is sent through a pooler")

// tameCancels bounds what is dialled once the session is open, which it is told by what it returns. That is cancel requests: pgx sends one in
// the background when it gives a connection up, and lets it take 15 s. Behind a pooler of transactions none is sent: it ends what a client that
// has gone was waiting for, and PgBouncer 1.18 is ended by cancel requests now and then ("server in bad state",
// https://github.com/pgbouncer/pgbouncer/issues/822).
func (d *Dialer) tameCancels(cfg *pgx.ConnConfig, pooled bool) (opened *atomic.Bool) {
	opened = &atomic.Bool{}
	dial, limit := cfg.DialFunc, min(d.TTL/4, cancelTimeout)
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		switch {
		case !opened.Load():
			return dial(ctx, network, addr)
		case pooled:
			return nil, errMuted
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		deadline := time.Now().Add(limit)
		conn, err := dial(ctx, network, addr)
		if err == nil {
			err = conn.SetDeadline(deadline)
		}
		return conn, err
	}
	return opened
}
