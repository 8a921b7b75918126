package pgserver

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The programs of a sandbox start others and cut their ties to them, so the watchdog knows them by their working directory.
//
//go:embed sandbox.sh
var sandboxScript string

// Sandbox is a temporary directory, in memory where there is plenty, and the programs that run in it: those of
// [Sandbox.Command], and all that they start. Root runs them as user postgres or nobody. They end, and the directory is removed, with
// [Sandbox.Remove] or with this process, even one killed by SIGKILL. That takes Linux, whose /proc tells where a process is.
type Sandbox struct {
	dir      string
	owner    *account // the user that runs the programs, nil for this process's own
	watchdog *watchdog
}

// NewSandbox makes a sandbox without a program in it.
func NewSandbox() (*Sandbox, error) {
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := makeDir(owner)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{dir: dir, owner: owner}
	if s.watchdog, err = startWatchdog(sandboxScript, dir, owner); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// Dir is the sandbox's directory.
func (s *Sandbox) Dir() string { return s.dir }

// Mkdir makes a directory in the sandbox, which the programs may write to, and returns its path.
func (s *Sandbox) Mkdir(name string) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("pgserver: %w", err)
	}
	return path, s.own(path)
}

// WriteFile writes a file that the programs can read and nobody else but root.
func (s *Sandbox) WriteFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	return s.own(path)
}

func (s *Sandbox) own(path string) error {
	if s.owner == nil {
		return nil
	}
	if err := os.Chown(path, s.owner.uid, s.owner.gid); err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	return nil
}

// Command prepares a program that runs in a directory of the sandbox. Variables of the environment that begin with one of the
// prefixes in without are left out.
func (s *Sandbox) Command(ctx context.Context, dir string, without []string, name string, args ...string) *exec.Cmd {
	cmd := commandAs(ctx, s.owner, name, args...)
	env := []string{"HOME=" + s.dir, "TMPDIR=" + s.dir}
	for _, v := range cmd.Env {
		foreign := strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "TMPDIR=")
		for _, prefix := range without {
			foreign = foreign || strings.HasPrefix(v, prefix)
		}
		if !foreign {
			env = append(env, v)
		}
	}
	cmd.Env, cmd.Dir = env, dir
	return cmd
}

// Remove ends the programs and removes the directory.
func (s *Sandbox) Remove(ctx context.Context) error {
	err := s.watchdog.release(ctx)
	// The watchdog may lack the right to remove the directory itself from where it is.
	return errors.Join(err, os.RemoveAll(s.dir))
}
