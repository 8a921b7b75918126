package doctor

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	consoleName    = "pgbouncer" // the database by which PgBouncer answers for itself
	consoleTimeout = 5 * time.Second
	longWait       = 1 // seconds that a client waits for a server connection
)

// poolRoom is what a pooler says of the database's pool.
type poolRoom struct {
	version string
	mode    string
	size    int // server connections of one role
	most    int // of the database in all; 0 for no bound
	clients int // connections that the pooler takes from all clients
	waiting int // clients that wait for a server connection now
	maxWait int // for so many seconds, the longest of them
}

// places returns how many server connections one role can have.
func (r poolRoom) places() int {
	if r.most > 0 {
		return min(r.size, r.most)
	}
	return r.size
}

// pool compares the pool of the pooler in between with what the replicas open.
func (e *examination) pool() Finding {
	need := e.Replicas * e.MaxConns
	room, err := e.askPooler()
	if err != nil {
		return Finding{
			Topic: "pool", Says: fmt.Sprintf("The pooler could not be asked for the size of its pool: %v.", err),
			Do: fmt.Sprintf("Compare by hand: %d replicas open up to %d connections. In session mode pool_size must be that at the least, beside what the service "+
				"takes, and max_client_conn in any mode. PgBouncer tells them to its admin_users and stats_users, on the database %s: SHOW DATABASES, SHOW CONFIG.",
				e.Replicas, need, consoleName),
		}
	}
	f := Finding{Topic: "pool", Says: fmt.Sprintf("%s in %s mode has %d server connections for this database and role, and takes %d clients. "+
		"At %d replicas the service opens %d at the most.", room.version, room.mode, room.places(), room.clients, e.Replicas, need)}
	if room.waiting > 0 {
		f.Says += fmt.Sprintf(" Clients that wait for one now: %d, the longest for %d s.", room.waiting, room.maxWait)
	}
	switch {
	case need > room.clients:
		f.Level = Warning
		f.Do = fmt.Sprintf("The pooler refuses what is more than max_client_conn: raise it above %d, or lower Config.MaxConns.", need)
	case room.mode == "session" && need > room.places():
		f.Level = Warning
		f.Do = fmt.Sprintf("In session mode each connection of a client keeps one of the pool's, and what is more waits: raise pool_size (and max_db_connections, "+
			"if it is set) to %d beside what the service takes, or lower Config.MaxConns.", need)
	case room.maxWait >= longWait:
		f.Level = Warning
		f.Do = "The pool is too small for what goes through it: raise pool_size, or find the transactions that keep its connections (SHOW CLIENTS)."
	}
	return f
}

// askPooler asks PgBouncer's console, if it lets in who the service logs in as.
func (e *examination) askPooler() (room poolRoom, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, consoleTimeout)
	defer cancel()
	own := e.conn.Config()
	cfg := own.Config.Copy()
	cfg.Database = consoleName
	cfg.RuntimeParams = map[string]string{}
	cfg.ValidateConnect, cfg.AfterConnect = nil, nil // they ask for what only servers have
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return room, err
	}
	defer func() { _ = conn.Close(ctx) }()
	room.version = "The pooler"
	if version, err := show(ctx, conn, "SHOW VERSION"); err == nil && len(version) == 1 && version[0]["version"] != "" {
		room.version = version[0]["version"]
	}
	settings := map[string]string{}
	config, err := show(ctx, conn, "SHOW CONFIG")
	if err != nil {
		return room, err
	}
	for _, row := range config {
		settings[row["key"]] = row["value"]
	}
	databases, err := show(ctx, conn, "SHOW DATABASES")
	if err != nil {
		return room, err
	}
	var database map[string]string
	for _, row := range databases {
		if row["name"] == own.Database {
			database = row
		}
	}
	room.mode = cmp.Or(database["pool_mode"], settings["pool_mode"])
	room.size = cmp.Or(number(database["pool_size"]), number(settings["default_pool_size"]))
	room.most = cmp.Or(number(database["max_connections"]), number(settings["max_db_connections"]))
	room.clients = number(settings["max_client_conn"])
	if room.mode == "" || room.size == 0 || room.clients == 0 {
		return room, fmt.Errorf("the database %s is not PgBouncer's console", consoleName)
	}
	pools, err := show(ctx, conn, "SHOW POOLS")
	if err != nil {
		return room, err
	}
	for _, row := range pools {
		if row["database"] == own.Database {
			room.waiting += number(row["cl_waiting"])
			room.maxWait = max(room.maxWait, number(row["maxwait"]))
		}
	}
	return room, nil
}

// show returns the rows of an answer by the names of their columns, which differ between versions.
func show(ctx context.Context, conn *pgconn.PgConn, sql string) ([]map[string]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll() // the console knows no other protocol
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.ToLower(sql), err)
	}
	var rows []map[string]string
	for _, result := range results {
		for _, values := range result.Rows {
			row := map[string]string{}
			for i, value := range values {
				row[result.FieldDescriptions[i].Name] = string(value)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// number returns 0 for what is none.
func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}
