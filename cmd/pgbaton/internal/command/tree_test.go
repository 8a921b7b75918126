package command

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

func TestTree(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	held := func(client, name string, behind ...int) pgbaton.LockInfo {
		return pgbaton.LockInfo{State: "held", Kind: "lock", Name: name, Key: pgbaton.Name(name), Client: client, BlockedBy: behind}
	}
	waits := func(client, name string, behind ...int) pgbaton.LockInfo {
		l := held(client, name, behind...)
		l.State, l.Since = "waiting", now.Add(-90*time.Second)
		return l
	}
	for name, c := range map[string]struct {
		locks []pgbaton.LockInfo
		want  string
	}{
		"Chain": {[]pgbaton.LockInfo{held("a", "x"), waits("b", "x", 0), held("b", "y", 1), waits("c", "y", 2), waits("d", "x", 0)}, `a holds lock x
├─ b waits for lock x, for 1m30s
│  └─ b holds lock y
│     └─ c waits for lock y, for 1m30s
└─ d waits for lock x, for 1m30s
`},
		"TwoHolders": {[]pgbaton.LockInfo{held("a", "x"), held("b", "x"), waits("c", "x", 0, 1), held("c", "y", 2)}, `a holds lock x
└─ c waits for lock x, for 1m30s
   └─ c holds lock y
b holds lock x
└─ c waits for lock x, for 1m30s  (its waiters are above)
`},
		"Circle": {[]pgbaton.LockInfo{held("a", "x", 3), waits("b", "x", 0), held("b", "y", 1), waits("a", "y", 2)}, `a holds lock x
└─ b waits for lock x, for 1m30s
   └─ b holds lock y
      └─ a waits for lock y, for 1m30s
         └─ a holds lock x  <- a circle: a deadlock, unless one of them stops waiting
`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, tree(shown{c.locks, now}))
		})
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": `""`, "plain": "plain", "two words": "two words", `a"quote`: `a"quote`, "Ünï": "Ünï", "\x1b[2J": `"\x1b[2J"`, "a\nb": `"a\nb"`,
		"\xff": `"\xff"`, "\u202eabc": `"\u202eabc"`,
	} {
		require.Equal(t, want, printable(text))
	}
}

// TestArgument: what is printed as a key is read as that key.
func TestArgument(t *testing.T) {
	t.Parallel()
	for _, key := range []pgbaton.Key{
		pgbaton.Name("invoice/42"), pgbaton.Name("id:42"), pgbaton.Name("name:x"), pgbaton.Name("pair:"), pgbaton.ID(-42), pgbaton.Pair(-1, 2),
		pgbaton.Pair(1, -2), pgbaton.Pair(0, 0), pgbaton.ID(0),
	} {
		read, err := parseKey(keyArgument(key))
		require.NoError(t, err)
		require.Equal(t, key, read)
	}
}
