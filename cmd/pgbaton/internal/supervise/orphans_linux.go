package supervise

import (
	"time"

	"golang.org/x/sys/unix"
)

// kin knows which children of this process no keeper has left to it: those that it had before a command was started, as of a shell whose
// place it took, and other keepers.
type kin struct{ before map[int]string }

// keepers are the keepers that were started and not waited for; protected by starting.
var keepers = map[int]bool{}

// meet makes this process the parent of all that its next keeper may leave, and looks which children it has. The caller has starting.
func meet() kin {
	adopt()
	return kin{before: offspring()}
}

// killOrphans kills what a keeper has left that was killed and waited for: children of this process, or of others that end. It takes
// their exit statuses, so that none remains as a zombie, and leaves all other children and their statuses alone. It returns how many
// processes are left: those of other users. As in a keeper, no look at the list of processes proves that nobody is there, so it goes by
// the kernel's word that there is no child, and by two looks running where this process has others.
func (k kin) killOrphans(group int) (left int) {
	for last := -1; ; time.Sleep(killEvery) {
		if group != 0 {
			_ = unix.Kill(-group, unix.SIGKILL)
		}
		there, refused, others := k.killOwn()
		again := there == last
		if again && refused == there && there+others > 0 || childless() {
			return there
		}
		last = there
	}
}

// killOwn kills the children that a keeper has left, and returns how many there are, how many of them could not be killed, and how many
// others this process has.
func (k kin) killOwn() (there, refused, others int) {
	starting.Lock() // a keeper that is being started is no orphan
	defer starting.Unlock()
	for pid, state := range offspring() {
		switch _, had := k.before[pid]; {
		case had || keepers[pid]:
			others++
		case state == zombie:
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		default:
			there++
			if err := unix.Kill(pid, unix.SIGKILL); err == unix.EPERM {
				refused++
			}
		}
	}
	return there, refused, others
}

// childless reports whether this process has no child, living or not.
func childless() bool {
	return unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD
}
