package signing_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/firmseal/firmseal/internal/servertest"
)

// More requests at once than there are connections to read with: none waits
// for another that waits for it.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, o servertest.Options) {
		s := servertest.New(t, o)
		s.Key("many", "p256", "production", "many", "raw")
		s.Policy(servertest.Profile("many", "many", "production", "raw", "many"))
		c := s.HTTP()
		var wg sync.WaitGroup
		for i := range 96 {
			wg.Go(func() {
				n := servertest.Request("many", fmt.Sprintf("1.0.%d", i), uint64(i+1), []byte(fmt.Sprint("image ", i)))
				n.HardwareIDs = []string{fmt.Sprint("board-", i)}
				r, err := c.Sign(t.Context(), n, "", time.Minute)
				if err != nil || r.State != "released" {
					t.Errorf("request %d is %s: %+v, %v", i, r.State, r.Problem, err)
				}
			})
		}
		wg.Wait()
	})
}
