package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

// The variables that a command finds in its environment.
const (
	variableKey   = "PGBATON_KEY"
	variableToken = "PGBATON_TOKEN"
	variableName  = "PGBATON_NAME"
)

// beats is how often in a TTL the command's life is extended.
const beats = 20

// graceShare is the part of the TTL that a command has between TERM and KILL when its server is silent, if nothing else is said.
const graceShare = 10

// grant is a lock or a permit.
type grant interface {
	Token() pgbaton.Token
	Done() <-chan struct{}
	Err() error
}

// holder runs a command while something is held.
type holder struct {
	app       *app
	client    *client
	signals   *signals
	killAfter time.Duration // between a signal to stop and KILL; 0 for never
	path      string
	argv      []string
}

// newHolder finds the command before anything is waited for, and takes the signals. Close ends it.
func (a *app) newHolder(ctx context.Context, argv []string, killAfter time.Duration) (*holder, error) {
	path, err := supervise.Find(argv[0])
	if err != nil {
		return nil, cannotRun(err)
	}
	h := &holder{app: a, signals: a.signals, path: path, argv: argv, killAfter: killAfter}
	if err := h.signals.hold(); err != nil {
		return nil, h.failure(err)
	}
	opening, cancel := h.signals.context(ctx)
	defer cancel()
	if h.client, err = a.open(opening); err != nil {
		if halted := h.signals.halt(); halted != nil {
			err = halted
		}
		return nil, h.failure(err)
	}
	return h, nil
}

// close ends the client. What is held is released by then.
func (h *holder) close(ctx context.Context) {
	if err := h.client.close(ctx); err != nil {
		h.app.say("pgbaton: close: %v", err)
	}
}

// failure gives an error its exit status.
func (h *holder) failure(err error) error {
	if status := haltStatus(err); status != 0 {
		return exit(status, fmt.Errorf("%w; no command was started", err))
	}
	return err
}

func cannotRun(err error) error {
	var cannot *supervise.RunError
	if errors.As(err, &cannot) {
		return exit(cannot.Status(), cannot)
	}
	return err
}

// outcome is how a command has ended that was started.
type outcome struct {
	status int
	lost   error // why the command no longer had what it ran under; nil if it had it until its end
}

// run runs the command until nothing of it is left. An error means that it was not started, and not for a loss. A command is asked to stop when ask ends.
func (h *holder) run(ask <-chan struct{}, key string, g grant) (outcome, error) {
	p, err := h.signals.start(supervise.Command{
		Path: h.path, Args: h.argv, Env: h.environment(key, g.Token()),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Grace: h.grace(),
	}, g, h.client.life)
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		return outcome{lost: lost}, nil
	case err != nil:
		return outcome{}, err
	}
	defer h.signals.finish()
	killed := h.attend(p, ask, g)
	result := p.Result()
	switch {
	case result.Broken != nil:
		h.app.say("pgbaton: the command was killed: %v", result.Broken)
	case result.Left > 0:
		h.app.say("pgbaton: %d processes of other users are left, which could not be killed", result.Left)
	}
	out := outcome{status: result.Status, lost: g.Err()}
	switch {
	case out.lost != nil && !killed:
		out.lost = fmt.Errorf("%w; the command had ended by then, with status %d", out.lost, out.status)
	case out.lost == nil && result.Expired:
		out.lost = fmt.Errorf("the server was silent, and the command was stopped before the lock could go to others (it ended with status %d)",
			out.status)
	}
	return out, nil
}

// grace is the time between TERM and KILL when the server is silent.
func (h *holder) grace() time.Duration {
	if h.killAfter > 0 {
		return min(h.killAfter, h.client.ttl/(2*lifeShare))
	}
	return h.client.ttl / graceShare
}

// attend keeps the command alive while it may live. It returns when nothing of it is left, and reports whether it was killed
// because what it ran under was lost.
func (h *holder) attend(p *supervise.Process, ask <-chan struct{}, g grant) (killed bool) {
	beat := time.NewTicker(h.client.ttl / beats)
	defer beat.Stop()
	var tooLate <-chan time.Time
	halted, lost := h.signals.halted, g.Done()
	stop := func(patience time.Duration) {
		if patience > 0 && tooLate == nil {
			tooLate = time.After(patience)
		}
	}
	for {
		select {
		case <-p.Done():
			return killed
		case <-lost:
			lost, killed = nil, true
			p.Kill()
		case <-halted: // the command has the signal
			halted = nil
			stop(h.killAfter)
		case <-ask:
			ask = nil
			p.Signal(syscall.SIGTERM)
			stop(cmp.Or(h.killAfter, resignPatience))
		case <-tooLate:
			p.Kill()
		case <-beat.C:
			p.Extend(h.client.life())
		}
	}
}

// environment is this process's, and after it what the command should know.
func (h *holder) environment(key string, token pgbaton.Token) []string {
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return name == variableKey || name == variableToken || name == variableName
	})
	return append(env,
		variableKey+"="+key, variableToken+"="+strconv.FormatInt(int64(token), 10), variableName+"="+h.client.name)
}
