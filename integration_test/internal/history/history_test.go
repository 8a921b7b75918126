package history

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func grant(process int, mode string, token, called, got, end, over int64) *Grant {
	return &Grant{Process: process, Op: 1, Key: "k", Mode: mode, Token: token, Called: called, Got: got, End: end, Over: over}
}

// judge says which of the three checks find a fault.
func judge(t *testing.T, grants ...*Grant) (exclusion, tokens, model bool) {
	t.Helper()
	_, err1 := Exclusion(grants)
	err2 := Tokens(grants)
	_, err3 := Check(grants, t.TempDir())
	return err1 != nil, err2 != nil, err3 != nil
}

// The checks must find what they are for, or their silence proves nothing.
func TestChecksFindFaults(t *testing.T) {
	t.Parallel()
	lost := grant(1, Exclusive, 1, 0, 1, 12, 12)
	lost.Lost = true
	for name, c := range map[string]struct {
		grants                   []*Grant
		exclusion, tokens, model bool
	}{
		"one after the other": {grants: []*Grant{
			grant(1, Exclusive, 1, 0, 1, 2, 3), grant(2, Exclusive, 2, 0, 3, 4, 5),
		}},
		"two writers": {grants: []*Grant{
			grant(1, Exclusive, 1, 0, 1, 5, 6), grant(2, Exclusive, 2, 0, 3, 7, 8),
		}, exclusion: true, model: true},
		"a reader beside a writer": {grants: []*Grant{
			grant(1, Exclusive, 1, 0, 1, 5, 6), grant(2, Shared, 2, 0, 3, 7, 8),
		}, exclusion: true, model: true},
		"a writer beside a reader": {grants: []*Grant{
			grant(1, Shared, 1, 0, 1, 5, 6), grant(2, Exclusive, 2, 0, 3, 7, 8),
		}, exclusion: true, model: true},
		"two readers, tokens in any order": {grants: []*Grant{
			grant(1, Shared, 2, 0, 1, 5, 6), grant(2, Shared, 1, 0, 3, 7, 8),
		}},
		"a token that falls": {grants: []*Grant{
			grant(1, Exclusive, 2, 0, 1, 2, 3), grant(2, Exclusive, 1, 4, 5, 6, 7),
		}, tokens: true, model: true},
		"a reader with a writer's token": {grants: []*Grant{
			grant(1, Exclusive, 2, 0, 1, 2, 3), grant(2, Shared, 2, 4, 5, 6, 7),
		}, tokens: true, model: true},
		"a holder that was told late": {grants: []*Grant{lost, grant(2, Exclusive, 2, 0, 10, 13, 14)}},
	} {
		exclusion, tokens, model := judge(t, c.grants...)
		require.Equal(t, []bool{c.exclusion, c.tokens, c.model}, []bool{exclusion, tokens, model}, name)
	}
}

func TestCheckKeepsTheVisualisation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := Check([]*Grant{
		grant(1, Exclusive, 1, 0, 1, 5, 6), grant(2, Exclusive, 2, 0, 3, 7, 8),
	}, dir)
	require.ErrorContains(t, err, "Illegal")
	kept, err := filepath.Glob(filepath.Join(dir, "*.html"))
	require.NoError(t, err)
	require.Len(t, kept, 1)
}

func TestLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	log, err := Create(path)
	require.NoError(t, err)
	op := log.Op()
	for at, kind := range []string{Call, Granted, Release, Released} {
		log.Append(Event{At: int64(at), Kind: kind, Op: op, Key: "k", Mode: Exclusive, Token: 7})
	}
	log.Append(Event{At: 9, Kind: Call, Op: log.Op(), Key: "k", Mode: Exclusive})
	events, err := Read(path)
	require.NoError(t, err)
	grants, counts := Grants(3, events, 0)
	require.Equal(t, Counts{Tried: 2, Granted: 1, Unknown: 1}, counts)
	require.Equal(t, []*Grant{grant(3, Exclusive, 7, 0, 1, 2, 3)}, grants)
}
