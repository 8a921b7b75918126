package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// uncomparable is an error whose values cannot be compared.
type uncomparable []string

func (u uncomparable) Error() string { return fmt.Sprint([]string(u)) }

func TestSaysOnly(t *testing.T) {
	t.Parallel()
	cause, broken := fmt.Errorf("%w: by an operator", ErrResigned), errors.New("the last batch was not saved")
	for name, test := range map[string]struct {
		err  error
		only bool
	}{
		"nothing":               {nil, true},
		"the end":               {context.Canceled, true},
		"the cause":             {cause, true},
		"the end, in words":     {fmt.Errorf("work: %w", context.Canceled), true},
		"both":                  {errors.Join(context.Canceled, fmt.Errorf("work: %w", cause)), true},
		"something else":        {broken, false},
		"something else beside": {fmt.Errorf("%w: %w", context.Canceled, broken), false},
		"uncomparable":          {uncomparable{"a"}, false},
		"another end":           {context.DeadlineExceeded, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.only, saysOnly(test.err, context.Canceled, cause))
		})
	}
	require.False(t, saysOnly(uncomparable{"a"}, uncomparable{"a"}))
}
