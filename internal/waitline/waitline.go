// Package waitline is the line of goroutines that wait for a grant: served in order of arrival, each answered once.
//
// # What it guarantees
//
//   - Waiters are in the order in which they came. Push puts one behind the others, PushFront before them; nothing else
//     changes the order.
//   - An answer and the end of the waiter's context race, and exactly one of them wins. Answer returns false for a waiter
//     that has left the line, so its grant goes to the next or back. Abandon returns false for a waiter that was answered.
//   - Wait returns nil only when the grant is the caller's to keep. A grant that was answered before the context ended, and
//     is seen after it, is given back by Wait.
//   - After Wait has returned the waiter is in no line, and nothing is sent to its signal.
//
// # What it does not
//
// It has no mutex: a line and its waiters are guarded by the owner's. Wake and Wait are called without it.
package waitline

import (
	"context"
	"errors"
	"iter"
)

// state is where a waiter is in its life.
//
//	state     | Push, PushFront | Answer            | Abandon
//	outside   | waiting         | false             | false
//	waiting   | panic           | answered, true    | abandoned, true
//	answered  | panic           | false             | false
//	abandoned | panic           | false             | false
type state uint8

const (
	outside state = iota // it is in no line yet
	waiting
	answered
	abandoned
)

// Waiter is a goroutine that waits, with the owner's record of its wish and of its grant.
type Waiter[T any] struct {
	Value T

	state      state
	err        error
	next, prev *Waiter[T]
	signal     chan struct{} // gets one value, from Wake
}

// Init prepares a waiter. The signal is an empty channel of capacity 1; nil has one made.
func (w *Waiter[T]) Init(signal chan struct{}) {
	if signal == nil {
		signal = make(chan struct{}, 1)
	}
	w.signal = signal
}

// Next returns the waiter behind this one in the line, nil if there is none.
func (w *Waiter[T]) Next() *Waiter[T] { return w.next }

// Waiting reports whether the waiter is in a line.
func (w *Waiter[T]) Waiting() bool { return w.state == waiting }

// Err returns why the waiter was refused, nil if it was granted. It is valid when the waiter was answered.
func (w *Waiter[T]) Err() error { return w.err }

// Woken reports whether the answer is there: Wait would return at once.
func (w *Waiter[T]) Woken() bool { return len(w.signal) > 0 }

// Wake has the waiter see its answer. It is called once after Answer, without the owner's mutex.
func (w *Waiter[T]) Wake() { w.signal <- struct{}{} }

// Within waits for a value of timeout or for the end of ctx, and reports whether the answer, or that end, came first.
func Within[T, V any](ctx context.Context, w *Waiter[T], timeout <-chan V) bool {
	select {
	case <-w.signal:
		w.signal <- struct{}{} // for Wait; it does not block: the signal was emptied, and nobody else writes to it
		return true
	case <-ctx.Done():
		return true
	case <-timeout:
		return false
	}
}

// ErrEnded is the result of a wait that the context ended. The waiter holds nothing.
var ErrEnded = errors.New("the context ended before there was a grant")

// Wait waits for the answer until ctx ends, and returns nil for a grant, the error of a refusal, or ErrEnded. The owner's
// abandon takes its mutex, calls [Line.Abandon] and returns what that does. The owner's giveBack takes a grant for which
// the context has ended.
func (w *Waiter[T]) Wait(ctx context.Context, abandon func(*Waiter[T]) bool, giveBack func(*Waiter[T])) error {
	select {
	case <-w.signal:
	case <-ctx.Done():
		if abandon(w) {
			return ErrEnded
		}
		<-w.signal // the answer has won
	}
	switch {
	case w.err != nil:
		return w.err
	case ctx.Err() != nil: // of two that are true the end counts: the caller has stopped waiting
		giveBack(w)
		return ErrEnded
	}
	return nil
}

// Line is the waiters of one thing, in order of arrival. The zero value is empty.
type Line[T any] struct {
	first, last *Waiter[T]
	length      int
}

// Len returns how many wait.
func (l *Line[T]) Len() int { return l.length }

// First returns the waiter to be served next, nil if there is none.
func (l *Line[T]) First() *Waiter[T] { return l.first }

// Push puts a new waiter behind the others.
func (l *Line[T]) Push(w *Waiter[T]) {
	l.admit(w)
	if l.last == nil {
		l.first = w
	} else {
		l.last.next, w.prev = w, l.last
	}
	l.last = w
}

// PushFront puts a new waiter before the others.
func (l *Line[T]) PushFront(w *Waiter[T]) {
	l.admit(w)
	if l.first == nil {
		l.last = w
	} else {
		l.first.prev, w.next = w, l.first
	}
	l.first = w
}

func (l *Line[T]) admit(w *Waiter[T]) {
	if w.state != outside {
		panic("waitline: a waiter is in line once")
	}
	w.state = waiting
	l.length++
}

// Answer takes a waiter out of the line with its answer: a grant if err is nil, which the owner has recorded in Value. It
// returns false, and does nothing, when the waiter does not wait. Wake must follow.
func (l *Line[T]) Answer(w *Waiter[T], err error) bool {
	if w.state != waiting {
		return false
	}
	l.remove(w)
	w.state, w.err = answered, err
	return true
}

// Abandon takes a waiter out of the line without an answer. It returns false, and does nothing, when the waiter does not
// wait: then it was answered, and Wake comes.
func (l *Line[T]) Abandon(w *Waiter[T]) bool {
	if w.state != waiting {
		return false
	}
	l.remove(w)
	w.state = abandoned
	return true
}

func (l *Line[T]) remove(w *Waiter[T]) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
	l.length--
}

// All returns the waiters in order. The loop may take the waiter that it is at out of the line.
func (l *Line[T]) All() iter.Seq[*Waiter[T]] {
	return func(yield func(*Waiter[T]) bool) {
		for w := l.first; w != nil; {
			next := w.next
			if !yield(w) {
				return
			}
			w = next
		}
	}
}
