// Package dsn reads connection strings, and keeps what they hold out of errors.
//
// What it guarantees: an error of [Parse], and one that has gone through [Connect], has no part of the connection
// string's password, in its text and in everything that can be reached from it by Unwrap and As. A malformed string
// cannot be redacted, because nobody knows where its password ends. So an error of Parse is made of fixed sentences: pgx's
// reason chooses the sentence, and nothing of the reason that may quote the string is taken over.
//
// A string that is well-formed can still put a piece of a password where pgx takes it for a host, a database or a
// parameter, and an error of connecting would print it. Parse refuses what an unescaped "@" or "/" in a URL's password
// leads to, and a URL that is not one from its first character on.
package dsn

import (
	"errors"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	likeThis = "postgres://user:password@host:5432/database"
	encode   = "percent-encode the special characters of user and password: @ is %40, / is %2F, : is %3A, # is %23, % is %25"
)

// Parse reads a connection string or URL as pgx knows it, with the parameters of pgx's pool.
func Parse(dsn string) (*pgxpool.Config, error) {
	if isURL(dsn) && misplaced(dsn) {
		return nil, errors.New("the connection URL has an @ behind the host; " + encode)
	}
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New(explain(dsn, err))
	}
	if text := implausible(config.ConnConfig); text != "" {
		return nil, errors.New(text)
	}
	return config, nil
}

var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.$]*$`)

// implausible reports why a string that pgx understands was meant otherwise, or nothing.
func implausible(config *pgx.ConnConfig) string {
	hosts := []string{config.Host}
	for _, f := range config.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		if strings.ContainsRune(host, '@') {
			return "the connection string has an @ in the host; in a URL, " + encode
		}
	}
	for name := range config.RuntimeParams {
		if !parameterName.MatchString(name) {
			return "the connection string has a parameter whose name cannot be one: it is neither a URL like " + likeThis +
				" from its first character on, nor a list like host=localhost user=me dbname=app"
		}
	}
	if strings.Contains(config.Database, "://") || strings.Contains(config.User, "://") {
		return "the connection string has a URL in the place of the user or of the database: give the URL alone"
	}
	return ""
}

func isURL(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// misplaced reports whether an @ is in the path of a URL or in the name of a parameter: then an @ or a slash before it
// was meant as a piece of the password.
func misplaced(url string) bool {
	_, rest, _ := strings.Cut(url, "://")
	at, slash := strings.IndexByte(rest, '@'), strings.IndexByte(rest, '/')
	if at >= 0 && (slash < 0 || at < slash) {
		rest = rest[at+1:] // behind the user and the password
	}
	beforeQuery, query, _ := strings.Cut(rest, "?")
	if strings.ContainsRune(beforeQuery, '@') {
		return true
	}
	for _, parameter := range strings.Split(query, "&") {
		if name, _, _ := strings.Cut(parameter, "="); strings.ContainsRune(name, '@') {
			return true
		}
	}
	return false
}

// advice has the beginning of pgx's reasons, and what to tell people instead.
var advice = []struct{ reason, text string }{
	{"failed to parse as URL", "is not a URL like " + likeThis + ": " + encode},
	{
		"failed to parse as keyword/value",
		"is neither a URL like " + likeThis + " nor a list like host=localhost user=me dbname=app: quote a value that " +
			`has spaces in single quotes, and write \' and \\ for ' and \`,
	},
	{"failed to read service", "names a service that cannot be read from the service file"},
	{"invalid sslcertmode", "has an sslcertmode other than disable, allow and require"},
	{"invalid connect_timeout", "has a connect_timeout that is not a number of seconds"},
	{"could not match", "has another number of ports than of hosts"},
	{"invalid port", "has a port that is not a number from 1 to 65535; in a URL, " + encode},
	{"failed to configure TLS", "has TLS parameters (sslmode, sslrootcert, sslcert, sslkey) that cannot be used"},
	{
		"unknown target_session_attrs", "has a target_session_attrs other than any, read-write, read-only, primary, " +
			"standby and prefer-standby",
	},
	{"invalid min_protocol_version", "has a min_protocol_version other than 3.0, 3.2 and latest"},
	{"invalid max_protocol_version", "has a max_protocol_version other than 3.0, 3.2 and latest"},
	{"min_protocol_version cannot", "has a min_protocol_version above its max_protocol_version"},
	{"unknown channel_binding", "has a channel_binding other than disable, prefer and require"},
	{"invalid require_auth", "has a require_auth that is not understood"},
	{"cannot parse statement_cache_capacity", "has a statement_cache_capacity that is not a number"},
	{"cannot parse description_cache_capacity", "has a description_cache_capacity that is not a number"},
	{
		"invalid default_query_exec_mode", "has a default_query_exec_mode other than cache_statement, cache_describe, " +
			"describe_exec, exec and simple_protocol",
	},
	{"cannot parse pool_max_conns", "has a pool_max_conns that is not a number"},
	{"pool_max_conns too small", "has a pool_max_conns below 1"},
	{"cannot parse pool_min_conns", "has a pool_min_conns that is not a number"},
	{"cannot parse pool_min_idle_conns", "has a pool_min_idle_conns that is not a number"},
	{"cannot parse pool_max_conn_lifetime_jitter", "has a pool_max_conn_lifetime_jitter that is not a time such as 30s"},
	{"cannot parse pool_max_conn_lifetime", "has a pool_max_conn_lifetime that is not a time such as 1h"},
	{"cannot parse pool_max_conn_idle_time", "has a pool_max_conn_idle_time that is not a time such as 30m"},
	{"cannot parse pool_health_check_period", "has a pool_health_check_period that is not a time such as 1m"},
	{"cannot parse pool_ping_timeout", "has a pool_ping_timeout that is not a time such as 5s"},
}

// explain reports why pgx refuses dsn, without a word of it.
func explain(dsn string, err error) string {
	prefix := pgconn.NewParseConfigError(dsn, "", nil).Error() // what pgx puts before its reason
	reason := strings.TrimPrefix(err.Error(), prefix)
	text := "the connection string is refused: compare it with " + likeThis
	for _, a := range advice {
		if strings.HasPrefix(reason, a.reason) {
			text = "the connection string " + a.text
			break
		}
	}
	var path *fs.PathError
	var number *strconv.NumError
	switch {
	case errors.As(err, &path):
		return text + " (a file: " + path.Err.Error() + ")" // the system's word, without the name
	case errors.As(err, &number):
		return text + " (" + number.Err.Error() + ")"
	}
	return text
}

// Connect takes the connection's config, which has the password, out of an error of connecting. The text stays, in one
// line; the errors beneath, such as the server's and the context's, can still be found by Is and As.
func Connect(err error) error {
	var failed *pgconn.ConnectError
	if !errors.As(err, &failed) {
		return err
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	text := strings.Replace(strings.Join(lines, "; "), ":; ", ": ", 1)
	return &connectError{text: text, cause: errors.Unwrap(failed)}
}

type connectError struct {
	text  string
	cause error
}

func (e *connectError) Error() string { return e.text }
func (e *connectError) Unwrap() error { return e.cause }
