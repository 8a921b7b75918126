package pgserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the user that root lends to PostgreSQL's programs.
type account struct{ uid, gid int }

// unprivileged finds who is to run the server: nil, the process's own user, unless that is root.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			continue
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			continue
		}
		return &account{uid: uid, gid: gid}, nil
	}
	return nil, errors.New("pgserver: PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// commandAs prepares a program that runs as owner, with messages in English and without settings for
// PostgreSQL's own clients and programs, such as PGDATA and PGPORT.
func commandAs(ctx context.Context, owner *account, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "LC_") && !strings.HasPrefix(v, "LANG") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	// A session of its own keeps the terminal's Ctrl-C away: who started the server decides when it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if owner != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(owner.uid), Gid: uint32(owner.gid)}
	}
	return cmd
}

// makeDir makes a temporary directory that owner can reach. Root's own TMPDIR is often closed to others.
func makeDir(owner *account) (string, error) {
	parent := tempDir()
	if owner != nil && !openToAll(parent) {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "pgserver-")
	if err != nil {
		return "", fmt.Errorf("pgserver: %w", err)
	}
	if owner != nil {
		if err = os.Chown(dir, owner.uid, owner.gid); err != nil {
			return "", errors.Join(fmt.Errorf("pgserver: %w", err), os.RemoveAll(dir))
		}
	}
	// The watchdog recognises the server by the path of its directory as the kernel tells it.
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", errors.Join(fmt.Errorf("pgserver: %w", err), os.RemoveAll(dir))
	}
	return resolved, nil
}

// openToAll reports whether any user may pass through the directory and those above it.
func openToAll(dir string) bool {
	dir, err := filepath.Abs(dir)
	for err == nil {
		var info os.FileInfo
		if info, err = os.Stat(dir); err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
		dir = filepath.Dir(dir)
	}
	return false
}

// FreePort finds a port of 127.0.0.1 that is free now. It stays below the range from which the kernel takes ports for
// outgoing connections: there a client that keeps dialling a restarting server could get the
// server's own port as its source, connect to itself, and keep the server out.
func FreePort() (int, error) {
	var lastErr error
	for range 50 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		lastErr = err
	}
	return 0, fmt.Errorf("pgserver: no free port: %w", lastErr)
}

// alive reports whether a process exists. EPERM means that it does, and belongs to somebody else.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return pid > 0 && (err == nil || errors.Is(err, syscall.EPERM))
}
