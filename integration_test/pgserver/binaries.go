package pgserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	superuser     = "postgres"
	startAttempts = 5 // with another port each, when somebody else took it meanwhile
	// restartPatience is for the children of a postmaster that was killed: the server does not start
	// again until they have noticed.
	restartPatience = 15 * time.Second
)

func binariesOrigin(bindir string) string { return "binaries in " + bindir }

// StartBinaries starts a server of one's own from the programs in bindir, for tests that change its
// settings, restart it or kill its processes. It listens on 127.0.0.1 only, keeps everything in a
// temporary directory, which is in memory where there is plenty, and is as durable there as PostgreSQL is by
// default. Root runs it as user postgres or nobody, because PostgreSQL refuses to run as root.
func StartBinaries(ctx context.Context, bindir string, opts ...Option) (*Server, error) {
	major := binaryMajor(bindir)
	if major < minMajor {
		return nil, fmt.Errorf("pgserver: %s has no initdb, pg_ctl and postgres of PostgreSQL %d or later", bindir, minMajor)
	}
	c, err := newCluster(bindir)
	if err != nil {
		return nil, err
	}
	if err := c.create(ctx, newOptions(opts).settings); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	if _, err := askMajor(ctx, c.url()); err != nil {
		return nil, errors.Join(fmt.Errorf("pgserver: connect to the server just started: %w%s", err, c.logTail()), c.remove(ctx))
	}
	s := &Server{url: c.url(), origin: binariesOrigin(bindir), major: major, cluster: c, stop: c.remove}
	if err := s.hastenLogin(ctx); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return s, nil
}

// DataDir is the server's data directory, or "" when the server was not started from local binaries.
func (s *Server) DataDir() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.data()
}

// BinDir is the directory of the server's programs, or "" when it was not started from local binaries.
func (s *Server) BinDir() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.bindir
}

// LogFile is the server's log, or "" when the server was not started from local binaries.
func (s *Server) LogFile() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.log()
}

// PID is the process ID of the postmaster at this moment; 0 when it does not run, or when the server was not
// started from local binaries.
func (s *Server) PID() int {
	if s.cluster == nil {
		return 0
	}
	return s.cluster.pid()
}

// Restart restarts the server as pg_ctl does: "fast" ends the sessions and shuts down cleanly,
// "immediate" is a crash, with recovery at the start. A server whose postmaster was killed is started again. The
// port stays the same. On success the server accepts connections. Only for servers from local
// binaries, else the error is [ErrNotOurs].
func (s *Server) Restart(ctx context.Context, mode string) error {
	if s.cluster == nil {
		return ErrNotOurs
	}
	deadline := time.Now().Add(restartPatience)
	for {
		written := len(s.cluster.readLog())
		err := s.cluster.pgCtl(ctx, "restart", "-m", mode)
		if err == nil || time.Now().After(deadline) || !s.cluster.passing(err, written) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// passing reports whether a restart may succeed a little later: a postmaster that was killed is still being
// buried, or its children have not noticed its death yet.
func (c *cluster) passing(err error, written int) bool {
	if strings.Contains(err.Error(), "server does not shut down") {
		return c.pid() == 0
	}
	log := c.readLog()
	log = log[min(written, len(log)):]
	return bytes.Contains(log, []byte("pre-existing shared memory block")) ||
		bytes.Contains(log, []byte(`lock file "postmaster.pid" already exists`)) ||
		bytes.Contains(log, []byte("could not bind"))
}

// cluster is what a server from local binaries consists of: one temporary directory, made by
// newCluster, with the data directory, the log and nothing else, and the watchdog that removes it.
type cluster struct {
	bindir   string
	dir      string
	owner    *account // who runs the programs, nil for this process's own user
	watchdog *watchdog
	port     int
	password string
}

func newCluster(bindir string) (*cluster, error) {
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := makeDir(owner)
	if err != nil {
		return nil, err
	}
	c := &cluster{bindir: bindir, dir: dir, owner: owner, password: strings.ToLower(rand.Text())}
	if c.watchdog, err = startWatchdog(watchdogScript, dir, owner); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }
func (c *cluster) log() string  { return filepath.Join(c.dir, "server.log") }

func (c *cluster) url() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, c.password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)), Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return u.String()
}

// create makes the data directory. Passwords are asked for, as a Docker image's server does, so that a
// test with roles of its own behaves alike on both, and no other user of the machine gets in.
func (c *cluster) create(ctx context.Context, settings []setting) error {
	passwordFile := filepath.Join(c.dir, "password")
	if err := c.writeFile(passwordFile, c.password+"\n"); err != nil {
		return err
	}
	if err := c.run(ctx, "initdb", "-D", c.data(), "-U", superuser, "-A", authMethod, "--pwfile", passwordFile,
		"-E", "UTF8", "--no-locale", "--no-sync"); err != nil {
		return err
	}
	var conf strings.Builder
	fmt.Fprint(&conf, "\n# pgserver\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n",
		"dynamic_shared_memory_type = mmap\n") // in the data directory, so that a server that is killed leaves nothing behind
	for _, s := range settings {
		fmt.Fprintf(&conf, "%s = %s\n", s.name, quoteSetting(s.value))
	}
	fmt.Fprint(&conf, "include = 'port.conf'\n")
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("pgserver: configure the server: %w", err)
	}
	_, err = f.WriteString(conf.String())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pgserver: configure the server: %w", err)
	}
	return nil
}

// start starts the server on a free port.
func (c *cluster) start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		port, err := FreePort()
		if err != nil {
			return err
		}
		c.port = port
		if err = c.writeFile(filepath.Join(c.data(), "port.conf"), fmt.Sprintf("port = %d\n", port)); err != nil {
			return err
		}
		err = c.pgCtl(ctx, "start")
		taken := bytes.Contains(c.readLog(), []byte("could not bind"))
		if err == nil || !taken || attempt == startAttempts {
			return err
		}
		if err := os.Remove(c.log()); err != nil {
			return fmt.Errorf("pgserver: clear the log: %w", err)
		}
	}
}

// remove stops the server at once and removes its directory; the watchdog does both.
func (c *cluster) remove(ctx context.Context) error {
	err := c.watchdog.release(ctx)
	// The watchdog may lack the right to remove the directory itself from where it is.
	return errors.Join(err, os.RemoveAll(c.dir))
}

func (c *cluster) pid() int {
	content, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || !alive(pid) {
		return 0
	}
	return pid
}

func (c *cluster) pgCtl(ctx context.Context, command string, args ...string) error {
	err := c.run(ctx, "pg_ctl", append([]string{command, "-D", c.data(), "-l", c.log(), "-w", "-t", "60"}, args...)...)
	if err != nil {
		return fmt.Errorf("%w%s", err, c.logTail())
	}
	return nil
}

// run runs one of the server's programs to its end.
func (c *cluster) run(ctx context.Context, program string, args ...string) error {
	cmd := commandAs(ctx, c.owner, filepath.Join(c.bindir, program), args...)
	cmd.Dir = c.dir // the directory of this process may be closed to the owner
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // the program's own error says that it was killed
		return fmt.Errorf("pgserver: %s: %w: %w", program, context.Cause(ctx), err)
	default:
		return fmt.Errorf("pgserver: %s: %w\n%s", program, err, bytes.TrimSpace(out))
	}
}

// writeFile writes a file that the owner can read and nobody else but root.
func (c *cluster) writeFile(name, content string) error {
	err := os.WriteFile(name, []byte(content), 0o600)
	if err == nil && c.owner != nil {
		err = os.Chown(name, c.owner.uid, c.owner.gid)
	}
	if err != nil {
		return fmt.Errorf("pgserver: write %s: %w", filepath.Base(name), err)
	}
	return nil
}

func (c *cluster) readLog() []byte {
	content, err := os.ReadFile(c.log())
	if err != nil {
		return nil // not written yet
	}
	return content
}

// logTail is the end of the server's log, for an error's text.
func (c *cluster) logTail() string {
	lines := strings.Split(strings.TrimSpace(string(c.readLog())), "\n")
	return "\n" + strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// quoteSetting quotes a value for postgresql.conf, where a backslash escapes.
func quoteSetting(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`).Replace(value) + "'"
}
