// Package pgserver finds or starts a PostgreSQL server for tests, the demo and benchmarks, so that
// nobody has to set one up by hand. It looks, in this order, for
//
//   - DATABASE_URL, a postgres:// URL of a role that may create databases (superuser for some tests);
//   - a healthy Docker engine, used through testcontainers-go: image postgres:17-alpine or the one that
//     PGBATON_POSTGRES_IMAGE names, or else the newest postgres image that the engine already has;
//   - PostgreSQL's own programs on this machine, see [BinDirs].
//
// A server started from local programs dies with the process that started it, even one killed by
// SIGKILL, and leaves no files behind.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNotOurs means that the server was not started from local binaries by this process, so its
// processes and files cannot be touched.
var ErrNotOurs = errors.New("pgserver: not a server that was started from local binaries")

// ErrNone means that no server was found and none could be started.
var ErrNone = errors.New(`pgserver: no PostgreSQL server. Do one of these:
  1. set DATABASE_URL to a PostgreSQL 14 or later, as a role that may create databases:
     DATABASE_URL=postgres://user:password@host:5432/dbname
  2. start Docker: a container is then started and removed by itself
  3. install PostgreSQL's server programs: apt-get install postgresql, brew install postgresql;
     if they are in an unusual place, set PG_BINDIR to the directory of initdb and pg_ctl`)

// minMajor is the oldest PostgreSQL that the library serves.
const minMajor = 14

// Server is a running PostgreSQL that tests, the demo and benchmarks may use as superuser.
type Server struct {
	url    string
	origin string
	major  int

	// cluster is nil unless the server was started from local binaries.
	cluster *cluster

	stopOnce sync.Once
	stop     func(context.Context) error
	stopErr  error
}

// Option changes how a server is started. A server that is found running stays as it is.
type Option func(*options)

type options struct {
	settings []setting
}

type setting struct{ name, value string }

// WithSetting sets a parameter of the server's configuration, such as log_lock_waits. Later ones win.
func WithSetting(name, value string) Option {
	return func(o *options) { o.settings = append(o.settings, setting{name, value}) }
}

// newOptions lays the options over the settings that every started server has: several packages' tests run
// at once, each many tests at a time, and every client of theirs may open several connections. The write-ahead log stays
// small, since it may be in memory.
func newOptions(opts []Option) options {
	o := options{settings: []setting{{"max_connections", "500"}, {"max_wal_size", "256MB"}}}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// fast gives up durability, which a server that lives for one test run does not need.
func fast(opts []Option) []Option {
	return append([]Option{WithSetting("fsync", "off"), WithSetting("full_page_writes", "off")}, opts...)
}

// Start finds a server or starts one, in the order that the package comment gives. Durability is off
// on a server that it starts (fsync = off), unless an option says otherwise. On failure the error
// matches [ErrNone] and names the ways to get a server; only a DATABASE_URL that does not answer is an
// error of its own, because somebody meant that server and no other.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	if url := os.Getenv("DATABASE_URL"); url != "" {
		return fromURL(ctx, url)
	}
	tried := ErrNone
	image, err := findImage(ctx)
	if err == nil {
		var s *Server
		if s, err = startContainer(ctx, image, fast(opts)...); err == nil {
			return s, nil
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("pgserver: %w", context.Cause(ctx))
	}
	tried = fmt.Errorf("%w\nDocker: %w", tried, err)
	note("Docker is not usable (%s), trying local binaries", brief(err))
	for _, dir := range preferredBinDirs() {
		s, err := StartBinaries(ctx, dir, fast(opts)...)
		if err == nil {
			return s, nil
		}
		tried = fmt.Errorf("%w\n%s: %w", tried, dir, err)
		note("%s: %s", dir, brief(err))
	}
	return nil, tried
}

// Look reports which server [Start] would most likely use, without starting it. It does fetch the Docker image.
func Look(ctx context.Context) (string, error) {
	if url := os.Getenv("DATABASE_URL"); url != "" {
		_, err := fromURL(ctx, url)
		return "DATABASE_URL", err
	}
	image, err := findImage(ctx)
	if err == nil {
		return dockerOrigin(image), nil
	}
	if dirs := preferredBinDirs(); len(dirs) > 0 {
		return binariesOrigin(dirs[0]), nil
	}
	return "", fmt.Errorf("%w\nDocker: %w", ErrNone, err)
}

// URL is the DSN of the server's default database, postgres://…, for its superuser.
func (s *Server) URL() string { return s.url }

// Origin says for people where the server came from, such as "Docker image postgres:17-alpine".
func (s *Server) Origin() string { return s.origin }

// Major is the server's major version, such as 17.
func (s *Server) Major() int { return s.major }

// Stop stops a server that was started by this package and removes its files. A server that was found
// running is left alone. It is safe twice.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() {
		if s.stop != nil {
			s.stopErr = s.stop(ctx)
		}
	})
	return s.stopErr
}

// fromURL takes a server that is already running.
func fromURL(ctx context.Context, url string) (*Server, error) {
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		return nil, errors.New("pgserver: DATABASE_URL must begin with postgres:// or postgresql://")
	}
	major, err := askMajor(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("pgserver: DATABASE_URL is set but does not serve: %w", err)
	}
	return &Server{url: url, origin: "DATABASE_URL", major: major}, nil
}

// askMajor connects, which also proves that the server is ready.
func askMajor(ctx context.Context, url string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer closeConn(ctx, conn)
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		return 0, fmt.Errorf("ask for the version: %w", err)
	}
	return version / 10000, nil
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// brief is an error for one line at the terminal.
func brief(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	line = strings.TrimPrefix(line, "pgserver: ")
	if runes := []rune(line); len(runes) > 150 {
		line = string(runes[:150]) + "…"
	}
	return line
}

// note tells the person at the terminal why another way is taken. It goes to stderr, because stdout
// may belong to the program under test.
func note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "pgserver: "+format+"\n", args...)
}
