package supervise

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// BecomeKeeper does nothing: the job object does what a keeper does elsewhere.
func BecomeKeeper() {}

// system is a command in a job object, which ends with the last handle to it: the caller's.
type system struct {
	process *os.Process
	job     windows.Handle

	mu       sync.Mutex
	until    time.Time
	grace    time.Duration
	expiring bool
	ended    bool
}

// patrol is how often the command's life is looked at.
const patrol = 20 * time.Millisecond

// Begin starts a command. The error is a [*RunError] if the system does not execute it.
func Begin(cmd Command) (*Process, error) {
	job, err := newJob()
	if err != nil {
		return nil, fmt.Errorf("make a job object: %w", err)
	}
	// It is suspended until it is in the job: no child of it is outside.
	process, err := os.StartProcess(cmd.Path, cmd.Args, &os.ProcAttr{
		Env: cmd.Env, Files: []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr},
		Sys: &syscall.SysProcAttr{CreationFlags: windows.CREATE_SUSPENDED | windows.CREATE_NEW_PROCESS_GROUP},
	})
	if err != nil {
		_ = windows.CloseHandle(job)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		return nil, &RunError{Name: cmd.Args[0], Err: err}
	}
	if err := errors.Join(assign(job, process.Pid), resume(process.Pid)); err != nil {
		_ = process.Kill()
		_ = windows.CloseHandle(job)
		return nil, fmt.Errorf("put the command into a job object: %w", err)
	}
	p := &Process{started: make(chan struct{}), done: make(chan struct{})}
	close(p.started)
	p.system.process, p.system.job = process, job
	p.system.until, p.system.grace = time.Now().Add(cmd.Life), cmd.Grace
	go p.wait()
	go p.watch()
	return p, nil
}

func newJob() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE},
	}
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		_ = windows.CloseHandle(job)
		return 0, err
	}
	return job, nil
}

func assign(job windows.Handle, pid int) error {
	process, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseHandle(process) }()
	return windows.AssignProcessToJobObject(job, process)
}

// resume lets the only thread of a suspended process run.
func resume(pid int) error {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseHandle(snapshot) }()
	entry := windows.ThreadEntry32{Size: uint32(unsafe.Sizeof(windows.ThreadEntry32{}))}
	for err = windows.Thread32First(snapshot, &entry); err == nil; err = windows.Thread32Next(snapshot, &entry) {
		if entry.OwnerProcessID != uint32(pid) {
			continue
		}
		thread, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, entry.ThreadID)
		if err != nil {
			return err
		}
		_, err = windows.ResumeThread(thread)
		return errors.Join(err, windows.CloseHandle(thread))
	}
	return err
}

// wait takes the command's exit status, and kills what it has left running.
func (p *Process) wait() {
	state, err := p.system.process.Wait()
	s := &p.system
	s.mu.Lock()
	s.ended = true
	p.result.Expired = s.expiring
	s.mu.Unlock()
	if err != nil {
		p.result.Broken = err
	} else {
		p.result.Status = state.ExitCode()
	}
	for s.active() > 0 {
		s.kill()
		time.Sleep(time.Millisecond)
	}
	_ = windows.CloseHandle(s.job)
	close(p.done)
}

// active returns how many processes are in the job.
func (s *system) active() uint32 {
	const basicAccountingInformation = 1
	var info struct {
		times                                     [4]int64
		pageFaults, processes, active, terminated uint32
	}
	err := windows.QueryInformationJobObject(s.job, basicAccountingInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), nil)
	if err != nil {
		return 0
	}
	return info.active
}

// watch counts the command's life.
func (p *Process) watch() {
	ticker := time.NewTicker(patrol)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
			p.system.age()
		}
	}
}

func (s *system) age() {
	s.mu.Lock()
	left := time.Until(s.until)
	tell := !s.expiring && left <= s.grace
	s.expiring = s.expiring || tell
	s.mu.Unlock()
	if tell {
		s.signal(syscall.SIGTERM)
	}
	if left <= 0 {
		s.kill()
	}
}

// signal sends what consoles have for it.
func (s *system) signal(syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		_ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(s.process.Pid))
	}
}

func (s *system) extend(until time.Time) {
	s.age() // first: the word may be late
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.expiring {
		s.until = until
	}
}

const killedStatus = StatusSignalled + 9

func (s *system) kill() { _ = windows.TerminateJobObject(s.job, killedStatus) }

func (s *system) proceed() {}
