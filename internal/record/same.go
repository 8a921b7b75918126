package record

import (
	"database/sql/driver"
	"math"
	"reflect"
	"time"
)

// maxDepth ends the comparison of values that contain themselves.
const maxDepth = 100

// same reports whether two values of one type are sent as the same. It is reflect.DeepEqual except where that speaks of
// Go and not of what the server gets: NaN is NaN, 0 is not -0, a value with a driver.Valuer is what that returns, and
// a time is its microsecond and its offset.
func same(a, b reflect.Value, depth int) bool {
	if depth > maxDepth {
		return false
	}
	if a.CanInterface() && b.CanInterface() {
		if equal, known := sameSent(a, b, depth); known {
			return equal
		}
	}
	switch a.Kind() {
	case reflect.Float32, reflect.Float64:
		return sameFloat(a.Float(), b.Float())
	case reflect.Complex64, reflect.Complex128:
		x, y := a.Complex(), b.Complex()
		return sameFloat(real(x), real(y)) && sameFloat(imag(x), imag(y))
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return a.Elem().Type() == b.Elem().Type() && same(a.Elem(), b.Elem(), depth+1)
	case reflect.Slice:
		return a.IsNil() == b.IsNil() && sameList(a, b, depth)
	case reflect.Array:
		return sameList(a, b, depth)
	case reflect.Map:
		return a.IsNil() == b.IsNil() && sameMap(a, b, depth)
	case reflect.Struct:
		for i := range a.NumField() {
			if !same(a.Field(i), b.Field(i), depth+1) {
				return false
			}
		}
		return true
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return a.Pointer() == b.Pointer()
	}
	return a.Equal(b)
}

// sameSent compares times, and what a driver.Valuer makes of the values.
func sameSent(a, b reflect.Value, depth int) (equal, known bool) {
	if x, ok := a.Interface().(time.Time); ok {
		y := b.Interface().(time.Time)
		_, offsetX := x.Zone()
		_, offsetY := y.Zone()
		return x.UnixMicro() == y.UnixMicro() && offsetX == offsetY, true
	}
	x, ok := a.Interface().(driver.Valuer)
	if !ok || a.Kind() == reflect.Pointer && (a.IsNil() || b.IsNil()) {
		return false, false
	}
	y := b.Interface().(driver.Valuer)
	sentX, errX := x.Value()
	sentY, errY := y.Value()
	if errX != nil || errY != nil {
		return false, false
	}
	if sentX == nil || sentY == nil {
		return sentX == sentY, true
	}
	vx, vy := reflect.ValueOf(sentX), reflect.ValueOf(sentY)
	return vx.Type() == vy.Type() && same(vx, vy, depth+1), true
}

func sameFloat(x, y float64) bool {
	return math.IsNaN(x) && math.IsNaN(y) || math.Float64bits(x) == math.Float64bits(y)
}

func sameList(a, b reflect.Value, depth int) bool {
	if a.Len() != b.Len() {
		return false
	}
	for i := range a.Len() {
		if !same(a.Index(i), b.Index(i), depth+1) {
			return false
		}
	}
	return true
}

func sameMap(a, b reflect.Value, depth int) bool {
	if a.Len() != b.Len() {
		return false
	}
	for entries := a.MapRange(); entries.Next(); {
		other := b.MapIndex(entries.Key())
		if !other.IsValid() || !same(entries.Value(), other, depth+1) {
			return false
		}
	}
	return true
}
