package command

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeTimeout is how long a shell waits for names at the most.
const completeTimeout = 3 * time.Second

// completeNames completes the first arguments of a subcommand by the names of what is held and waited for at this moment, of some kinds.
// Without a database there are none.
func (a *app) completeNames(arguments int, kinds ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if _, other := cmd.Annotations[runsCommand]; other && len(args) >= arguments {
			return nil, cobra.ShellCompDirectiveDefault // the command that is run, and its files
		}
		if len(args) >= arguments {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		var names []string
		err := a.withClient(ctx, func(c *client) error {
			locks, err := c.Locks(ctx, nil)
			for _, l := range locks {
				name := argument(l)
				if name != "" && slices.Contains(kinds, l.Kind) && isPlain(name) && strings.HasPrefix(name, typed) {
					state := "waited for by "
					if l.State == stateHeld {
						state = "held by "
					}
					names = append(names, cobra.CompletionWithDesc(name, state+who(l)))
				}
			}
			return err
		})
		if err != nil {
			cobra.CompDebugln(redact(err.Error()), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		slices.Sort(names) // held is before waited for
		return slices.CompactFunc(names, func(one, other string) bool { return before(one) == before(other) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// before is a completion without its description.
func before(completion string) string {
	name, _, _ := strings.Cut(completion, "\t")
	return name
}
