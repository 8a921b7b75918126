//go:build !unix

package demo

import "errors"

const canFreeze = false

func (w *worker) freeze() error { return errors.ErrUnsupported }

func (w *worker) wake() error { return errors.ErrUnsupported }
