package mcuboot

import "github.com/firmseal/firmseal/internal/alg"

// Everything in this file is a number, a name or a plain type of the format.
// It is the one file that the half that makes images and the half that judges
// them have in common; there is no code here that reads or lays out bytes.

const formatName = "mcuboot"

const (
	magic     = 0x96f3b83d
	magicV1   = 0x96f3b83c // the header of 2017 and before; no bootloader reads it any more
	magicNone = 0xffffffff // erased flash

	infoMagic          = 0x6907 // of the TLV area
	infoMagicProtected = 0x6908 // of the protected TLV area, which is hashed

	headerLen  = 32 // the header's own fields; ih_hdr_size pads it
	infoLen    = 4  // magic and total of a TLV area
	tlvHeadLen = 4  // type and length of a TLV

	maxHeaderSize = 0xffff // ih_hdr_size is 16 bits
	maxArea       = 0xffff // it_tlv_tot is 16 bits and counts the info header
	maxSize       = 0xffffffff
)

// Offsets within the header.
const (
	offMagic    = 0
	offLoadAddr = 4
	offHdrSize  = 8
	offProtSize = 10
	offImgSize  = 12
	offFlags    = 16
	offMajor    = 20
	offMinor    = 21
	offRevision = 22
	offBuild    = 24
	offPad      = 28
)

// Header flags.
const (
	flagPIC         = 0x001
	flagAES128      = 0x004
	flagAES256      = 0x008
	flagNonBootable = 0x010
	flagRAMLoad     = 0x020
	flagROMFixed    = 0x100
	flagLZMA1       = 0x200
	flagLZMA2       = 0x400
	flagARMThumb    = 0x800

	flagsEncrypted  = flagAES128 | flagAES256
	flagsCompressed = flagLZMA1 | flagLZMA2 | flagARMThumb
)

// TLV types.
const (
	tlvKeyHash    = 0x01
	tlvPubKey     = 0x02
	tlvSHA256     = 0x10
	tlvSHA384     = 0x11
	tlvSHA512     = 0x12
	tlvRSA2048    = 0x20
	tlvECDSA224   = 0x21
	tlvECDSA      = 0x22
	tlvRSA3072    = 0x23
	tlvEd25519    = 0x24
	tlvSigPure    = 0x25
	tlvEncRSA     = 0x30
	tlvEncKW      = 0x31
	tlvEncEC256   = 0x32
	tlvEncX25519  = 0x33
	tlvEncX512    = 0x34
	tlvDependency = 0x40
	tlvSecCnt     = 0x50
	tlvBootRecord = 0x60
	tlvDecompSize = 0x70
	tlvDecompSHA  = 0x71
	tlvDecompSig  = 0x72
	tlvCompDec    = 0x73
	tlvVendorUUID = 0x74
	tlvClassUUID  = 0x75

	tlvVendorMin = 0x00a0
	tlvVendorMax = 0xfffe
)

// A scheme is one row of the format's table of signatures: what MCUboot is
// compiled for, which TLV that is, and which hash goes with it.
type scheme struct {
	Name    string // as profiles name it
	Key     alg.KeyType
	Alg     alg.ID
	SigTLV  uint16
	HashTLV uint16 // the default one
	MaxSig  int    // the largest encoding, for the room that is planned
}

const (
	defaultMaxSectors = 128
	defaultMaxAlign   = 8
)
