package session

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// setting is a parameter of a session. A protection is one without which locks still exclude, but the
// server frees them later when the client falls silent; some hosts forbid setting it.
type setting struct {
	name, value string
	protection  bool
}

// Protection is a setting by which the server frees the locks of a client that has fallen silent.
type Protection struct {
	Setting string
	Value   string
	Refused string // why the server would not set it; "" if it did
}

// What a waiting session's process may cost others when it freezes: a wait under way goes on for a slice at the most,
// and then the server ends the session after the silence. Together they stay below a second and a half.
const (
	longestSlice  = 400 * time.Millisecond
	shortestSlice = 20 * time.Millisecond
	// waitingSilence leaves time for a pause of the client, and for several round trips of a slow network.
	waitingSilence = time.Second
)

// WaitSlice is the longest that one call waits in the server's queue. It stays under deadlock_timeout, so
// that log_lock_waits writes nothing, and under a quarter of the TTL. Zero says that deadlock_timeout leaves no
// time to wait in: the session tries instead.
func WaitSlice(ttl time.Duration, server Server) time.Duration {
	slice := min(server.DeadlockTimeout*9/10, ttl/4, longestSlice)
	if slice < shortestSlice {
		return 0
	}
	return slice
}

// silence is how long nothing may be heard from a session of a role before the server ends it.
func (d *Dialer) silence(role Role, server Server) time.Duration {
	if role == Waiting {
		return min(d.TTL-WaitSlice(d.TTL, server), waitingSilence)
	}
	return d.TTL
}

// rowWait is how long the sidecar session waits for a lock at the most.
const rowWait = 500 * time.Millisecond

// settings are what a session of a role pins, whatever the role, database or pool config says.
func (d *Dialer) settings(role Role, server Server) []setting {
	silence := d.silence(role, server)
	lockTimeout := "0"
	if role == Sidecar {
		// Rows are claimed without waiting, so what remains is DDL on the tables, and the lock that every commit
		// with a notification takes. Signs of life must not wait for either.
		lockTimeout = millis(min(d.TTL/4, rowWait))
	}
	all := []setting{
		{name: "statement_timeout", value: "0"},
		{name: "lock_timeout", value: lockTimeout},
		{name: "idle_in_transaction_session_timeout", value: "0"},
		{name: "default_transaction_isolation", value: "read committed"},
		{name: "default_transaction_read_only", value: "off"},
		{name: "default_transaction_deferrable", value: "off"},
		{name: "search_path", value: "pg_catalog, pg_temp"},
		{name: "client_encoding", value: "UTF8"},
		{name: "exit_on_error", value: "off"}, // an error that a function traps would end the session
		{name: "client_min_messages", value: "error"},
		{name: "plan_cache_mode", value: "force_generic_plan"},
		{name: "jit", value: "off"},
		{name: "enable_bitmapscan", value: "off"}, // for a handful of rows an index is faster, statistics or not
		// A token may be lost in a crash, which the incarnation repairs; waiting for a synchronous
		// standby that is away would hang every lock.
		{name: "synchronous_commit", value: "off"},
		{name: "idle_session_timeout", value: millis(silence), protection: true},
		{name: "client_connection_check_interval", value: millis(min(d.TTL/10, 500*time.Millisecond)), protection: true},
	}
	if server.Version >= 170000 {
		all = append(all, setting{name: "transaction_timeout", value: "0"})
	}
	return append(all, keepalive(silence)...)
}

// keepalive makes the server's kernel give up on a silent peer. No sooner than the silence after the peer's last
// sign of life: until then the client may still trust its locks.
func keepalive(silence time.Duration) []setting {
	const probes = 3
	interval := max(1, int((silence/6+time.Second-1)/time.Second))
	idle := max(1, int((silence-time.Duration(probes*interval)*time.Second+time.Second-1)/time.Second))
	return []setting{
		{name: "tcp_keepalives_idle", value: strconv.Itoa(idle), protection: true},
		{name: "tcp_keepalives_interval", value: strconv.Itoa(interval), protection: true},
		{name: "tcp_keepalives_count", value: strconv.Itoa(probes), protection: true},
		{name: "tcp_user_timeout", value: millis(silence), protection: true},
	}
}

func millis(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10)
}

// pins are the commands that set the settings, each by itself, so that one refused protection does not cost the others.
// The values are the library's own. It is SET and not set_config(), which some take from PUBLIC.
func pins(all []setting) []Command {
	commands := make([]Command, len(all))
	for i, s := range all {
		value := "'" + s.value + "'"
		if s.name == "search_path" {
			value = s.value // a list of names
		}
		commands[i] = Command{What: "set " + s.name, SQL: "SET " + s.name + " TO " + value}
	}
	return commands
}

// pinned takes the answers to pins.
func pinned(all []setting, answers []answer) ([]Protection, error) {
	var protections []Protection
	for i, s := range all {
		err := answers[i].err
		var pgErr *pgconn.PgError
		switch {
		case err == nil && s.protection:
			protections = append(protections, Protection{Setting: s.name, Value: s.value})
		case err == nil:
		case s.protection && errors.As(err, &pgErr):
			protections = append(protections, Protection{Setting: s.name, Value: s.value, Refused: pgErr.Message})
		default:
			return nil, fmt.Errorf("set %s to %q: %w", s.name, s.value, err)
		}
	}
	return protections, nil
}
