package session

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// boundCancels bounds what is dialled once the session is open, which is cancel requests. pgx sends one in the
// background when it gives a connection up, and lets it take 15 s.
func (d *Dialer) boundCancels(cfg *pgx.ConnConfig) *atomic.Bool {
	opened := &atomic.Bool{}
	dial, limit := cfg.DialFunc, min(d.TTL/4, cancelTimeout)
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !opened.Load() {
			return dial(ctx, network, addr)
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

var errMuted = errors.New("no cancel request is sent through a pooler")

// muteCancels has no cancel request sent: a pooler ends what a client that has gone was waiting for, and PgBouncer 1.18 is ended by cancel
// requests now and then ("server in bad state", https://github.com/pgbouncer/pgbouncer/issues/822).
func (d *Dialer) muteCancels(cfg *pgx.ConnConfig) *atomic.Bool {
	opened, dial := &atomic.Bool{}, cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if opened.Load() {
			return nil, errMuted
		}
		return dial(ctx, network, addr)
	}
	return opened
}
