package patroni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// postmaster is a server's main process, as its file in the data directory tells.
type postmaster struct {
	pid    int
	memory int // the number of its segment of System V shared memory
}

func (n *Node) postmaster() (postmaster, error) {
	content, err := os.ReadFile(filepath.Join(n.data(), "postmaster.pid"))
	if err != nil {
		return postmaster{}, fmt.Errorf("patroni: %w", err)
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 7 {
		return postmaster{}, fmt.Errorf("patroni: the server of %s is just starting", n.name)
	}
	var p postmaster
	p.pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if keys := strings.Fields(lines[6]); err == nil && len(keys) == 2 {
		p.memory, err = strconv.Atoi(keys[1])
	}
	if err != nil {
		return postmaster{}, fmt.Errorf("patroni: read the process of %s: %w", n.name, err)
	}
	return p, nil
}

// children are the processes that a process has started.
func children(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // fails only for a bad pattern
	for _, stat := range stats {
		if fields := after(stat); len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat))) // the pattern has digits
			pids = append(pids, pid)
		}
	}
	return pids
}

// after returns the fields of a file stat that come after the name of the program: the state, the parent and more.
func after(path string) []string {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil // it has ended
	}
	return strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
}

// family is a process with all that it has started.
func family(pid int) []int {
	pids := []int{pid}
	for _, child := range children(pid) {
		pids = append(pids, family(child)...)
	}
	return pids
}

// gone reports whether none of the processes is there, except as a dead one that nobody has asked for.
func gone(pids []int) bool {
	return !slices.ContainsFunc(pids, func(pid int) bool {
		fields := after(fmt.Sprintf("/proc/%d/stat", pid))
		return len(fields) > 0 && fields[0] != "Z" && fields[0] != "X"
	})
}

// freeze stops a process with all that it has started, and returns them when no thread of theirs runs.
func freeze(ctx context.Context, pid int) ([]int, error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it starts nothing more
		return nil, fmt.Errorf("patroni: stop process %d: %w", pid, err)
	}
	pids := family(pid)
	signal(pids, syscall.SIGSTOP)
	return pids, await(ctx, soon, func(context.Context) error {
		for _, pid := range pids {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // fails only for a bad pattern
			for _, thread := range threads {
				if fields := after(thread); len(fields) > 0 && !strings.ContainsAny(fields[0], "TtZX") {
					return fmt.Errorf("patroni: process %d does not stop", pid)
				}
			}
		}
		return nil
	})
}

// signal sends a signal to processes, of which some may have ended.
func signal(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}

// kill kills a server's main process, and with all its children at once or lets them notice. The returned function waits until they
// have ended, and removes their shared memory, which would outlive the test.
func (n *Node) kill(all bool) (bury func(context.Context) error, err error) {
	server, err := n.postmaster()
	if err != nil {
		return nil, err
	}
	pids := family(server.pid)
	if all {
		signal(pids, syscall.SIGKILL)
	}
	if err = syscall.Kill(server.pid, syscall.SIGKILL); err != nil && !all {
		return nil, fmt.Errorf("patroni: kill the server of %s: %w", n.name, err)
	}
	return func(ctx context.Context) error {
		err := await(ctx, soon, func(context.Context) error {
			if !gone(pids) {
				return errors.New("patroni: the processes of a killed server do not end")
			}
			return nil
		})
		_, _ = unix.SysvShmCtl(server.memory, unix.IPC_RMID, nil) // the next start of the server may have removed it
		return err
	}, nil
}
