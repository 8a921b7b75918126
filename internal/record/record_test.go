package record_test

import (
	"database/sql"
	"math"
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

// spelled has the names whose words cannot be told from their letters alone.
type spelled struct {
	UserIDs    int
	URLsByID   int
	HTTPServer int
	OAuthToken int
	IPv4       int
	Address2   int
	User_Name  int //nolint:revive // what is tested
	Tagged     int `db:"Tag"`
	Lower      int `db:"other"`
}

func TestFor(t *testing.T) {
	t.Parallel()
	r, err := record.Struct(reflect.TypeFor[spelled]())
	require.NoError(t, err)
	require.Equal(t, []string{
		"user_ids", "urls_by_id", "http_server", "o_auth_token", "i_pv4", "address2", "user_name", "Tag", "other",
	}, r.Columns)
	for _, columns := range [][]string{
		r.Columns,
		{"user_ids", "urls_by_id", "http_server", "oauth_token", "ipv4", "address_2", "username", "tag", "OTHER"},
		{"user_i_ds", "urlsbyid", "HTTPServer", "OAuthToken", "IPv4", "Address2", "USER_NAME", "TAG", "Other"},
	} {
		fitted, err := r.For(append([]string{"more"}, columns...))
		require.NoError(t, err)
		require.Equal(t, columns, fitted.Columns)

		row := &row{}
		for _, column := range columns {
			row.fields = append(row.fields, pgconn.FieldDescription{Name: column})
		}
		_, err = pgx.RowToStructByName[spelled](row)
		require.NoError(t, err, "pgx takes the same")
		require.Len(t, fitted.Dests(&spelled{}), row.scanned)
	}
	// With several that fit, the usual spelling.
	fitted, err := r.For([]string{"userids", "user_ids", "tag", "Tag"})
	require.NoError(t, err)
	require.Equal(t, "user_ids", fitted.Columns[0])
	require.Equal(t, "Tag", fitted.Columns[7])
	require.Equal(t, "other", fitted.Columns[8], "the server says that there is none")

	twice, err := record.Struct(reflect.TypeFor[struct {
		UserID int
		Userid int
	}]())
	require.NoError(t, err)
	_, err = twice.For([]string{"userid", "user_id"})
	require.NoError(t, err)
	_, err = twice.For([]string{"userid"})
	require.ErrorContains(t, err, "two fields for column")
}

func TestChanged_WhatWouldBeSent(t *testing.T) {
	t.Parallel()
	type row struct {
		F     float64
		Fs    []float64
		M     map[string]float64
		P     *float32
		At    time.Time
		Null  sql.NullFloat64
		Any   any
		Bytes []byte
	}
	r, err := record.Struct(reflect.TypeFor[row]())
	require.NoError(t, err)
	nan, nan32 := math.NaN(), float32(math.NaN())
	now := time.Now()
	values := func() row {
		p := nan32
		return row{
			F: nan, Fs: []float64{1, nan}, M: map[string]float64{"a": nan}, P: &p, At: now,
			Null: sql.NullFloat64{Float64: nan, Valid: true}, Any: nan, Bytes: []byte{},
		}
	}
	a, b := values(), values()
	b.At = now.Round(0).Truncate(time.Microsecond) // without the monotonic clock
	require.Empty(t, r.Changed(&a, &b))

	zero := math.Copysign(0, -1)
	for column, change := range map[string]func(*row){
		"f":     func(r *row) { r.F = 1 },
		"fs":    func(r *row) { r.Fs = []float64{1} },
		"m":     func(r *row) { r.M = map[string]float64{"b": nan} },
		"p":     func(r *row) { r.P = nil },
		"at":    func(r *row) { r.At = now.Add(time.Millisecond) },
		"null":  func(r *row) { r.Null.Valid = false },
		"any":   func(r *row) { r.Any = 1 },
		"bytes": func(r *row) { r.Bytes = nil },
	} {
		a, b := values(), values()
		change(&b)
		require.Len(t, r.Changed(&a, &b), 1, column)
		require.Contains(t, r.Changed(&a, &b), column)
	}
	require.Contains(t, r.Changed(&row{F: 0}, &row{F: zero}), "f")
	require.Contains(t, r.Changed(&row{Fs: []float64{zero}}, &row{Fs: []float64{0}}), "fs")
	require.Empty(t, r.Changed(&row{F: zero}, &row{F: zero}))
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
