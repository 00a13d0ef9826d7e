package alg

import (
	"bytes"
	"encoding/asn1"
	"math/big"

	"github.com/firmseal/firmseal/internal/problem"
)

type ecdsaSig struct{ R, S *big.Int }

func parseECDSA(der []byte) (r, s *big.Int, err error) {
	var v ecdsaSig
	rest, err := asn1.Unmarshal(der, &v)
	if err == nil && len(rest) == 0 && v.R.Sign() > 0 && v.S.Sign() > 0 {
		// encoding/asn1 passes over bytes behind s inside the SEQUENCE. One
		// signature has one encoding, so what encodes otherwise is not it.
		if again, err := asn1.Marshal(v); err == nil && bytes.Equal(again, der) {
			return v.R, v.S, nil
		}
	}
	return nil, nil, problem.New(problem.SigEncoding, "the ECDSA signature is not DER").
		Seen("%d bytes that are not SEQUENCE { r, s }", len(der)).Because(err)
}

func encodeECDSA(r, s *big.Int) ([]byte, error) {
	if r.Sign() <= 0 || s.Sign() <= 0 {
		return nil, problem.New(problem.SigEncoding, "the raw ECDSA signature has a zero r or s")
	}
	return asn1.Marshal(ecdsaSig{r, s})
}
