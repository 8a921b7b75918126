package pgserver

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startSleepers starts a shell in a sandbox that leaves two processes of sessions of their own, one of them stopped, and ends.
func startSleepers(s *Sandbox) error {
	dir, err := s.Mkdir("sleepers")
	if err != nil {
		return err
	}
	script := filepath.Join(dir, "script")
	if err = s.WriteFile(script, []byte("setsid sleep 600 & setsid sleep 600 & kill -STOP $!\necho \"$SANDBOX_TEST\" >environment\n")); err != nil {
		return err
	}
	cmd := s.Command(context.Background(), dir, []string{"SANDBOX_"}, "/bin/sh", script)
	return cmd.Run()
}

func linux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("a sandbox needs Linux")
	}
}

func TestSandbox(t *testing.T) {
	linux(t)
	t.Setenv("SANDBOX_TEST", "left out")
	s, err := NewSandbox()
	require.NoError(t, err)
	require.NoError(t, startSleepers(s))
	environment, err := os.ReadFile(filepath.Join(s.Dir(), "sleepers", "environment"))
	require.NoError(t, err)
	require.Equal(t, "\n", string(environment))
	require.True(t, dataDirInUse(s.Dir()))
	require.NoError(t, s.Remove(t.Context()))
	require.False(t, dataDirInUse(s.Dir()))
	require.NoDirExists(t, s.Dir())
}

func TestSandbox_EndsWithAKilledProcess(t *testing.T) {
	linux(t)
	t.Parallel()
	// The watchdog may remove the sandbox's directory itself only from where its user may write.
	tmp, err := os.MkdirTemp("/tmp", "pgserver-test-") //nolint:usetesting // t.TempDir is closed to other users
	require.NoError(t, err)
	require.NoError(t, os.Chmod(tmp, 0o777|os.ModeSticky))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(tmp)) })
	cmd := helper(t, "sandbox", "TMPDIR="+tmp)
	_, err = cmd.StdinPipe() // while it is open, the helper lives
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	dir, err := strconv.Unquote(strings.TrimSpace(line))
	require.NoError(t, err, line)
	require.True(t, dataDirInUse(dir))
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err) && !dataDirInUse(dir)
	}, time.Minute, 20*time.Millisecond)
}

// helperSandbox keeps a sandbox until it is killed.
func helperSandbox() {
	s, err := NewSandbox()
	if err == nil {
		err = startSleepers(s)
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Printf("%q\n", s.Dir())
	_, _ = os.Stdin.Read(make([]byte, 1))
}
