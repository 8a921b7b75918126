package record_test

import (
	"database/sql"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/record"
)

type base struct {
	ID        int
	CreatedAt time.Time
}

type sample struct {
	base

	UserID     int
	HTTPServer string
	Address2   string
	User_Name  string //nolint:revive // what is tested
	Tagged     []int  `db:"Some Name,json"`
	EmptyTag   int    `db:""`
	Left       func() `db:"-"`
	hidden     int
}

func TestStruct(t *testing.T) {
	t.Parallel()
	t.Run("FollowsPgx", func(t *testing.T) {
		t.Parallel()
		r, err := record.Struct(reflect.TypeFor[sample]())
		require.NoError(t, err)
		columns := []string{"id", "created_at", "user_id", "http_server", "address2", "user_name", "Some Name", "empty_tag"}
		require.Equal(t, columns, r.Columns)
		require.Equal(t, `"id", "created_at", "user_id", "http_server", "address2", "user_name", "Some Name", "empty_tag"`, r.Select)

		// pgx finds a field for each of the columns, and none is left over (an empty tag it takes literally).
		row := &row{}
		for _, column := range columns[:len(columns)-1] {
			row.fields = append(row.fields, pgconn.FieldDescription{Name: column})
		}
		type pgxSample struct {
			base

			UserID     int
			HTTPServer string
			Address2   string
			User_Name  string //nolint:revive // what is tested
			Tagged     []int  `db:"Some Name,json"`
		}
		_, err = pgx.RowToStructByName[pgxSample](row)
		require.NoError(t, err)
		require.Equal(t, len(columns)-1, row.scanned)
	})
	t.Run("RefusesWhatIsNoRow", func(t *testing.T) {
		t.Parallel()
		for text, typ := range map[string]reflect.Type{
			"int is not a struct of columns":            reflect.TypeFor[int](),
			"sql.NullString is not a struct of columns": reflect.TypeFor[sql.NullString](),
			"time.Time has no exported fields":          reflect.TypeFor[time.Time](),
			"two fields for column \"a\"": reflect.TypeFor[struct {
				A int
				B int `db:"a"`
			}](),
			"embeds a pointer": reflect.TypeFor[struct{ *sample }](),
		} {
			_, err := record.Struct(typ)
			require.ErrorContains(t, err, text)
		}
	})
	t.Run("TakesEmptyStruct", func(t *testing.T) {
		t.Parallel()
		r, err := record.Struct(reflect.TypeFor[struct{}]())
		require.NoError(t, err)
		require.Empty(t, r.Dests(&struct{}{}))
	})
}

func TestChanged(t *testing.T) {
	t.Parallel()
	r, err := record.Struct(reflect.TypeFor[sample]())
	require.NoError(t, err)
	a := sample{UserID: 1, Tagged: []int{1}, hidden: 1}
	b := sample{UserID: 1, Tagged: []int{2}, hidden: 2, base: base{ID: 7}}
	require.Equal(t, map[string]any{"id": 7, "Some Name": []int{2}}, r.Changed(&a, &b))
	require.Empty(t, r.Changed(&a, &a))
}

// row is a row of which only the columns' names matter.
type row struct {
	pgx.CollectableRow

	fields  []pgconn.FieldDescription
	scanned int
}

func (r *row) FieldDescriptions() []pgconn.FieldDescription { return r.fields }

func (r *row) Scan(dest ...any) error {
	r.scanned = len(dest)
	return nil
}
